"""The parts of `tools/bench_kernels`: cases of each operator, their contenders, measurement, table."""
