"""Shards of a dataset: their files, how they are written, and how they are read and verified."""
