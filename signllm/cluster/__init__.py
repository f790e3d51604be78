"""Cluster: the same verb on Slurm, through submitit: what to ask the scheduler for, and how a rank starts there."""
