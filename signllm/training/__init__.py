"""Training: one DeepSpeed engine, one loop, one kind of checkpoint for every stage.

Knows ``nn.Module`` and batches, not sign language: a model is anything whose ``forward(batch)`` returns a
dict of loss shares, ``loss`` first. A *share* is this rank's part of the global value: the sum over ranks
is what one rank alone would compute on the whole batch.
"""
