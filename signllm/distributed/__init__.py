"""Everything that knows about other ranks: collectives, agreement, preemption, failures, local start.

Ranks exchange Python objects by torch's object collectives, which pickle them. The ranks of a job run the
same code for the same user and trust each other, as torch.distributed requires anyway. Files and requests are
not trusted: nothing that is read from them is a pickle.
"""
