"""A rank that dies while the others wait: ``python -m tests.distributed.dying_rank FOLDER HOW RANK``.

HOW is the signal's name; or ``MEMORY``: the rank asks for more memory than it may have; or ``WORKER``: a
worker of its data loader is killed. Each rank uses ``BALLAST`` bytes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from signllm.cli import _fail
from signllm.command import run_on_ranks
from signllm.distributed.local_ranks import describe_error, end_process
from signllm.distributed.rank_memory import memory_folder, read_memory
from tests.cluster.slurm import until

BALLAST = 300 << 20


class Kills:
    """A data set whose reader kills itself."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def die(how: str) -> None:
    """End as ``how`` says."""
    import torch
    from torch.utils.data import DataLoader

    if how == "MEMORY":
        torch.empty(1 << 50, dtype=torch.uint8)
    if how == "WORKER":
        list(DataLoader(Kills(), num_workers=1))  # type: ignore[arg-type]
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)


def wrote(run: Path) -> int:
    """Return what this rank's file says of its memory."""
    memory = read_memory(memory_folder(run / "failures"), int(os.environ["RANK"]))
    return memory.used_bytes if memory else 0


def main() -> None:
    """Meet the other ranks, then die or wait for the one that does."""
    folder, how, rank = sys.argv[1:]

    def work() -> None:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        ballast = b"x" * BALLAST
        until(lambda: wrote(Path(folder)) >= len(ballast), "the file of the memory")
        dist.barrier()
        if dist.get_rank() == int(rank):
            die(how)
        dist.all_reduce(torch.zeros(1))

    try:
        run_on_ranks("compose", [], 1, work, folder=Path(folder))
    except Exception as error:
        end_process(_fail(error, *describe_error(error)))


if __name__ == "__main__":
    main()
