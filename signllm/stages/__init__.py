"""SignLLM: stages."""
