"""The toy trained with a writer that meets trouble: ``python -m tests.training.saving FOLDER``, forked ranks.

``best`` is validated as VALUES say; in ``full`` the disk is full at the save of step 6, on two ranks; in
``killed`` the process dies within that save, in the writer's thread, and is started again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from signllm.training import checkpoint
from signllm.training.checkpoint import last_checkpoint
from signllm.training.engine import TrainingConfig
from signllm.training.loop import fit
from signllm.training.standard_callbacks import standard_callbacks
from tests.training.forks import on_forked_ranks, preload
from tests.training.toy import ToyLoader, build, toy_context

STEPS, SAVE_EVERY, TROUBLE_AT = 40, 3, 6
VALUES = {2: 3.0, 4: 1.0}
"""What a validation of these steps gives; of others, 2."""


def train(run: Path, rank: int, world: int, *, steps: int = STEPS, validate_every: int = 0) -> None:
    config = TrainingConfig(
        deepspeed="zero2",
        steps=steps,
        batch_size=4,
        save_every=SAVE_EVERY,
        validate_every=validate_every,
        keep=1,
        log_every=1,
        tensorboard=False,
    )
    report = run / f"rank-{rank}.json"

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        return {"loss": VALUES.get(step, 2.0)}

    try:
        outcome = fit(
            build(),
            ToyLoader(batch_size=4, rank=rank, world=world),
            config=config,
            context=toy_context(run),
            callbacks=standard_callbacks(config, validate if validate_every else None),
        )
        report.write_text(json.dumps({"step": outcome.step}))
    except Exception as error:
        report.write_text(json.dumps({"error": type(error).__name__, "message": str(error)}))


def in_trouble(trouble: Callable[[], None]) -> None:
    """Let ``trouble`` come while the weights of step ``TROUBLE_AT`` are on their way to the disk."""
    sync = checkpoint.sync

    def troubled(path: Path) -> None:
        if path.name == "weights.safetensors" and f"step-{TROUBLE_AT:08d}" in str(path):
            trouble()
        sync(path)

    checkpoint.sync = troubled


def disk_is_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder = Path(sys.argv[1])
    preload()
    on_forked_ranks(
        lambda rank: train(folder / "best", rank, 1, steps=9, validate_every=2), 1, folder / "told"
    )

    def troubled(name: str, world: int, trouble: Callable[[], None]) -> Callable[[int], None]:
        def work(rank: int) -> None:
            in_trouble(trouble)
            train(folder / name, rank, world)

        return work

    on_forked_ranks(troubled("full", 2, disk_is_full), 2, folder / "told")
    on_forked_ranks(troubled("killed", 1, die), 1, folder / "told")
    last = last_checkpoint(folder / "killed")
    left = sorted(path.name for path in (folder / "killed" / "checkpoints").iterdir())
    (folder / "killed.json").write_text(json.dumps({"last": last and last.name, "left": left}))
    shutil.copytree(folder / "killed", folder / "again")
    on_forked_ranks(lambda rank: train(folder / "again", rank, 1, steps=9), 1, folder / "told")


if __name__ == "__main__":
    main()
