"""Training: one DeepSpeed engine, one loop and one checkpoint format for all stages.

This package knows ``nn.Module`` and batches, but nothing about sign language. A model is any module whose
``forward(batch)`` returns a dict of loss shares, ``loss`` first. A *share* is this rank's part of the global
value: the sum over all ranks is what a single rank would compute for the complete batch.
"""
