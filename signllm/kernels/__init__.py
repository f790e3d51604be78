"""SignLLM: kernels."""
