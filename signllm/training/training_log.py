"""The log of a training run: ``log.jsonl`` and TensorBoard files, written by rank 0.

Both are truncated to the step that a run resumes from, so that the log of a killed and resumed run reads as
if the run had never stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import atomic_write, report_full_disk

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

AlarmCheck = Callable[[Mapping[str, Any]], Iterable[object]]
"""Is called with the lines of a log in order and returns the alarms that each raises."""


@dataclass(frozen=True)
class TensorBoardSamples:
    """What TensorBoard shows besides scalars, by name.

    Attributes:
        histograms: values (n,) whose distribution is drawn.
        pictures: images, uint8 (H, W, 3).
        texts: Markdown.
        translations: id, reference and hypothesis of each video.
    """

    histograms: Mapping[str, np.ndarray]
    pictures: Mapping[str, np.ndarray]
    texts: Mapping[str, str]
    translations: Sequence[tuple[str, str, str]] = ()


ALARM = "alarm"
log = logging.getLogger(__name__)


class TrainingLog:
    """Append one JSON object per line to ``run/log.jsonl`` and the same numbers to ``run/tensorboard/``.

    Args:
        run: the run folder.
        stage: name of the stage, written into every line.
        resumed_step: the step that training resumes from. Lines of later steps, which a run wrote that died
            before its next checkpoint, are removed.
        validation_left: also remove the validation of ``resumed_step``, because it will be repeated.
        tensorboard: whether to write TensorBoard's files.
        check_alarms: returns the alarms that a line raises. Each alarm is logged as a warning, written as a
            line of its own under the key ``alarm``, and shown in TensorBoard.
        enabled: False writes nothing; every rank but rank 0 passes it.
    """

    def __init__(
        self,
        run: Path,
        stage: str,
        *,
        resumed_step: int = 0,
        validation_left: bool = False,
        tensorboard: bool = True,
        check_alarms: AlarmCheck | None = None,
        enabled: bool = True,
    ) -> None:
        self.stage, self.enabled, self.check_alarms = stage, enabled, check_alarms
        self._board: SummaryWriter | None = None
        if not enabled:
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / "log.jsonl"
        truncate_log(path, stage, resumed_step, validation_left=validation_left)
        if check_alarms is not None:
            for line in read_log(run):
                check_alarms(line)  # their alarms were logged when they were written
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                str(run / "tensorboard"), purge_step=resumed_step + 1 if resumed_step else None
            )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the values of ``step``; numbers also go to TensorBoard, under the stage's name."""
        if not self.enabled:
            return
        line = {"stage": self.stage, "step": step, **values}
        with report_full_disk(Path(self._file.name)):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{self.stage}/{name}", value, step)
                elif name == ALARM:
                    self._board.add_text(f"{self.stage}/{name}", value, step)
        for alarm in self.check_alarms(line) if self.check_alarms is not None else ():
            log.warning("%s, step %d: %s", self.stage, step, alarm)
            self.write(step, {ALARM: str(alarm)})

    def write_samples(self, step: int, samples: TensorBoardSamples) -> None:
        """Write pictures, histograms and texts of ``step`` to TensorBoard, under the stage's name."""
        board = self._board
        if board is None:
            return
        with report_full_disk(Path(self._file.name)):
            for name, values in samples.histograms.items():
                board.add_histogram(f"{self.stage}/{name}", values, step)
            for name, picture in samples.pictures.items():
                board.add_image(f"{self.stage}/{name}", picture, step, dataformats="HWC")
            for name, text in samples.texts.items():
                board.add_text(f"{self.stage}/{name}", text, step)
            board.flush()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self._file.close()
        if self._board is not None:
            self._board.close()


def truncate_log(path: Path, stage: str, step: int, *, validation_left: bool = False) -> None:
    """Remove the lines of ``stage`` after ``step`` from a log, and a last line that is incomplete.

    Args:
        path: the log.
        stage: the stage whose lines are removed.
        step: the step from which training resumes.
        validation_left: also remove the validation of ``step``: the job was killed after this line and before
            the checkpoint that would record it.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        line_step = entry.get("step", 0)
        is_validation = any(name.startswith("validate/") for name in entry)
        is_repeated = validation_left and line_step == step and is_validation
        if entry.get("stage") != stage or (line_step <= step and not is_repeated):
            kept.append(line)
    atomic_write(path, "".join(f"{line}\n" for line in kept))


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``log.jsonl``; an empty list if there is none."""
    path = run / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
