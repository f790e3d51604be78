"""SignLLM: demo."""
