"""SignLLM: data."""
