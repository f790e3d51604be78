"""Everything that knows about other ranks: collectives, agreement, preemption, failures, local start."""
