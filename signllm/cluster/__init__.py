"""SignLLM: cluster."""
