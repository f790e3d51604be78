"""Run a verb as a job on Slurm through submitit, and plan what a job needs: memory, time and traffic."""
