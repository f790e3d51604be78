"""SignLLM: gloss-free sign language translation through sign tokens and a frozen LLM (arXiv 2404.00925)."""
