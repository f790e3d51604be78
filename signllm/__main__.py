"""``signllm`` and ``python -m signllm``, which starts the ranks of a run: the command line as a process."""

from __future__ import annotations

from signllm.cli import main
from signllm.training.local_ranks import begin_rank, end_process, leave_ranks


def run() -> None:
    """Run the command line and end this process with its exit code."""
    begin_rank()
    code = main()
    if code == 0:
        leave_ranks()
    end_process(code)


if __name__ == "__main__":
    run()
