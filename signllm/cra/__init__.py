"""SignLLM: cra."""
