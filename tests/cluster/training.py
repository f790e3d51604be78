"""What a rank of a test's job runs: stage 3 in miniature under ZeRO-3, long enough to be stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from signllm.command import whole
from signllm.stages.finetune import finetune
from signllm.training.engine import stop_distributed
from tests.stages import path


def finetune_on_rank(arguments: Sequence[str]) -> None:
    """Fine-tune ``FOLDER/pretrain`` into the folder ``RUN``; the arguments are FOLDER and RUN."""
    folder, run = map(Path, arguments)
    config = path.finetune_config(folder / "llm", epochs=12, deepspeed="zero3")
    whole(finetune(config, run=run, init=folder / "pretrain", shards=folder / "shards"))
    stop_distributed()
