"""SignLLM: evaluation."""
