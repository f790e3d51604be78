"""Experiments that examine what the characters and words of a trained run represent."""
