"""Ablations: the recipe without one of its parts, trained over several seeds and compared in a table."""
