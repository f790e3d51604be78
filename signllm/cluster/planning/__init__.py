"""Memory, time and traffic per rank of a job that has not started; needs no GPU."""
