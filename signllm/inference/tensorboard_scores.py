"""The TensorBoard output of an evaluation: scores at the step of the checkpoint, alarms, some translations.

It is written to a folder of its own below ``RUN/tensorboard``. TensorBoard reads only the latest event file
of a folder, and a training run that continues meanwhile writes to an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from signllm.atomic_files import report_full_disk
from signllm.metrics.hypotheses import Hypothesis
from signllm.metrics.scores import METRICS
from signllm.stages.alarms import Alarm
from signllm.stages.sample_logger import format_translation_table
from signllm.training.training_log import ALARM

FOLDER = Path("tensorboard", "evaluate")
TABLE_ROWS = 20
"""Number of translations in the table."""


def write_scores_to_tensorboard(
    run: Path,
    step: int,
    scores: Mapping[str, Mapping[str, Any]],
    hypotheses: Sequence[Hypothesis],
    alarms: Iterable[Alarm],
) -> None:
    """Write the results of an evaluation for TensorBoard.

    Args:
        run: run folder.
        step: step of the checkpoint.
        scores: name → contents of ``scores.NAME.json``; the first name is that of the hypotheses.
        hypotheses: translations, of which the first ones are shown.
        alarms: alarms that the scores triggered.

    Raises:
        UsageError: The disk is full.
    """
    from torch.utils.tensorboard import SummaryWriter

    label = next(iter(scores))
    rows = [(h.id, h.reference, h.hypothesis) for h in hypotheses[:TABLE_ROWS]]
    with report_full_disk(run / FOLDER), SummaryWriter(str(run / FOLDER)) as board:
        for name, values in scores.items():
            for metric in METRICS:
                board.add_scalar(f"{name}/{metric}", values[metric], step)
        for alarm in alarms:
            board.add_text(f"{label}/{ALARM}", str(alarm), step)
        board.add_text(f"{label}/translations", format_translation_table(rows), step)
