"""``signllm`` and ``python -m signllm``, which starts the ranks of a run: the command line as a process."""

from __future__ import annotations

from signllm.cli import main
from signllm.distributed.local_ranks import end_process, leave_process_group, prepare_rank


def run() -> None:
    """Run the command line and end this process with its exit code."""
    prepare_rank()
    code = main()
    if code == 0:
        leave_process_group()
    end_process(code)


if __name__ == "__main__":
    run()
