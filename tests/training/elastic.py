"""One run on 1, 2, 3 and again 1 rank, each part with its ZeRO stage, compared with an uninterrupted run.

``python -m tests.training.elastic toy FOLDER`` trains the toy; ``... finetune FOLDER COMPOSED`` fine-tunes a
small SignLLM on the videos of the test fixture ``composed``: ``FOLDER/alone`` and a folder for each of
``STRETCHES``, for fine-tuning of ``FINETUNED``, in forked ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.training import run_toy
from tests.training.forks import on_forked_ranks, preload

RANKS = (1, 2, 3, 1)
STRETCHES = {
    "zero2": ("zero2",) * 4,
    "zero3": ("zero3",) * 4,
    "changing": ("zero3", "zero2", "zero0", "zero3"),
}
"""The ZeRO file of each stretch, on as many ranks as ``RANKS`` says."""
FINETUNED = ("changing",)
TOY_ENDS, FINETUNE_ENDS = (3, 6, 9, 12), (2, 4, 6, 8)
"""The steps that the stretches end at."""
BATCH = 6
"""Divides over 1, 2 and 3 ranks."""
Stretch = Callable[[Path, str, int], object]
"""Trains in a folder under a ZeRO file up to a step."""


def train_toy(run: Path, zero_file: str, end: int) -> None:
    config = {"deepspeed": zero_file, "steps": TOY_ENDS[-1], "learning_rate": 0.02, "batch_size": BATCH}
    ended = run_toy.carry_out({"run": str(run), "config": config, "until": end})
    assert "error" not in ended, ended


def finetune_from(composed: Path) -> Stretch:
    """Return what fine-tunes on the videos of a folder; its heavy imports are done before a fork."""
    from signllm.data.loading.mixture import open_mixture
    from signllm.stages.finetune import finetune
    from tests.stages import path

    config = path.finetune_config(composed / "llm", epochs=99, batch_size=BATCH)
    config = replace(config, frozen_epochs=0, frozen_learning_rate=None)

    def train(run: Path, zero_file: str, end: int) -> None:
        training = replace(config.training, deepspeed=zero_file, steps=end)
        finetune(
            replace(config, training=training),
            run=run,
            init=composed / "pretrain",
            dataset=open_mixture(composed / "shards"),
        )

    return train


def main() -> None:
    kind, folder, *composed = sys.argv[1:]
    preload()
    train: Stretch = train_toy if kind == "toy" else finetune_from(Path(composed[0]))
    ends = TOY_ENDS if kind == "toy" else FINETUNE_ENDS
    names = STRETCHES if kind == "toy" else FINETUNED
    runs = {"alone": [(1, "zero0", ends[-1])]}
    runs |= {name: list(zip(RANKS, STRETCHES[name], ends, strict=True)) for name in names}
    for name, stretches in runs.items():
        run = Path(folder) / name
        for ranks, zero_file, end in stretches:
            codes, _ = on_forked_ranks(
                lambda _, run=run, file=zero_file, end=end: train(run, file, end), ranks, run
            )
            if any(codes):
                sys.exit(f"{name}, {ranks} ranks: {codes}\n{(run / 'rank-0.txt').read_text()[-3000:]}")


if __name__ == "__main__":
    main()
