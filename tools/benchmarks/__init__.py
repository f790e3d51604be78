"""Modules of the benchmarks in `tools/`."""
