"""The networks: VQ-Sign (video to characters) and SignLLM (characters to text, with a frozen language model).

Every loss and metric that a model returns is this rank's *share* of the global value: the sum of the shares
over all ranks is the value that a single rank would compute on the global batch. Results therefore do not
depend on the number of ranks.
"""
