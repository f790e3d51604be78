"""SignLLM: models."""
