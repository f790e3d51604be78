"""The same verb on Slurm, through submitit: what to ask the scheduler for, how a rank starts there."""
