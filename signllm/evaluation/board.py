"""What an evaluation leaves in TensorBoard: scores of the checkpoint's step, alarms, first translations.

In a folder of its own below ``RUN/tensorboard``: of a folder TensorBoard reads the latest file only, and a
training that goes on meanwhile writes into an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from signllm.atomic_files import report_full_disk
from signllm.evaluation.hypotheses import Hypothesis
from signllm.evaluation.scores import METRICS
from signllm.stages.alarms import Alarm
from signllm.stages.looks import said_and_written
from signllm.training.metrics import ALARM

FOLDER = Path("tensorboard", "evaluate")
SHOWN = 20
"""Translations in the table."""


def show_scores(
    run: Path,
    step: int,
    scores: Mapping[str, Mapping[str, Any]],
    hypotheses: Sequence[Hypothesis],
    alarms: Iterable[Alarm],
) -> None:
    """Put an evaluation of the checkpoint of ``step`` into TensorBoard.

    Args:
        run: its folder.
        step: of the checkpoint.
        scores: name → what ``scores.NAME.json`` holds; the first name is that of the hypotheses.
        hypotheses: translations, of which the first are shown.
        alarms: that the scores raised.

    Raises:
        UsageError: the disk is full.
    """
    from torch.utils.tensorboard import SummaryWriter

    label = next(iter(scores))
    rows = [(one.id, one.reference, one.hypothesis) for one in hypotheses[:SHOWN]]
    with report_full_disk(run / FOLDER), SummaryWriter(str(run / FOLDER)) as board:
        for name, found in scores.items():
            for metric in METRICS:
                board.add_scalar(f"{name}/{metric}", found[metric], step)
        for alarm in alarms:
            board.add_text(f"{label}/{ALARM}", str(alarm), step)
        board.add_text(f"{label}/translations", said_and_written(rows), step)
