"""``signllm`` and ``python -m signllm``, which starts the ranks of a run: the command line as a process."""

from __future__ import annotations

import os

from signllm.cli import main
from signllm.training.local_ranks import end_process, end_with_launcher, leave_ranks


def run() -> None:
    """Run the command line and end this process with its exit code."""
    end_with_launcher()
    if "SIGNLLM_RANK_MEMORY" in os.environ:  # started as one of several ranks
        from signllm.training.rank_memory import record_memory

        record_memory(None, int(os.environ.get("RANK", "0")))
    code = main()
    if code == 0:
        leave_ranks()
    end_process(code)


if __name__ == "__main__":
    run()
