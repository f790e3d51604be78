"""The networks: video to characters (VQ-Sign), characters to text (SignLLM around a frozen language model).

Every loss and metric a model returns is this rank's *share* of the global value: the sum over ranks is what
one rank would compute on the whole batch, so a run means the same on any number of ranks.
"""
