"""Codebook reconstruction and alignment (CRA), first half: composing sign words from characters.

Candidate words are learned from the character sequences of a training set; optimal transport of characters
into words chooses how many of them, and which, are kept (paper section 3.3). The second half, alignment, is
in :mod:`signllm.models.sign_llm`.
"""
