"""The parts of `tools/gpu_check`: kernels compiled ahead of time, and commands run under a time limit."""
