"""What a rank of a test's job runs: the stages in miniature, long enough to be stopped, or to die."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from signllm.command import whole
from signllm.stages.finetune import finetune
from signllm.training.local_ranks import leave_ranks
from tests.stages import path


def finetune_on_rank(arguments: Sequence[str]) -> None:
    """Fine-tune ``FOLDER/pretrain`` into the folder ``RUN``; the arguments are FOLDER and RUN."""
    folder, run = map(Path, arguments)
    config = path.finetune_config(folder / "llm", epochs=12, deepspeed="zero3")
    whole(finetune(config, run=run, init=folder / "pretrain", shards=folder / "shards"))
    leave_ranks()


def die_on_rank(arguments: Sequence[str]) -> None:
    """Train the toy into the folder RUN; in its third step rank 1 has the trouble KIND."""
    from signllm.training.engine import TrainingConfig, start_distributed
    from signllm.training.loop import fit
    from tests.training import run_toy, toy

    run, kind = arguments
    config = TrainingConfig(deepspeed="zero2", steps=200, batch_size=4, tensorboard=False, log_every=1)
    ranks = start_distributed(timeout_s=config.timeout_s)
    model = toy.build()
    model.__class__ = type("Accident", (run_toy.Trouble,), {"kind": kind, "at": 2, "rank": 1})
    loader = toy.ToyLoader(batch_size=4, rank=ranks.rank, world=ranks.world)
    fit(model, loader, config=config, run=Path(run), stage="toy")
