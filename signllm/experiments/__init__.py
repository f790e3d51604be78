"""Ablations of the method, and analyses of what its tokens stand for."""
