"""The frozen language model: its kinds, prompts, adapters, loading and generation."""
