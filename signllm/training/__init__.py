"""SignLLM: training."""
