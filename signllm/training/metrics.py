"""What a run writes while it trains: ``log.jsonl`` and TensorBoard, from rank 0.

Both are cut back to the step that a run resumes from, so a killed run's log reads as if it had never stopped.
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

Watch = Callable[[Mapping[str, Any]], Iterable[object]]
"""Looks at the lines of a log one after another and returns what is alarming in one."""


@dataclass(frozen=True)
class Shown:
    """What TensorBoard shows beside numbers, each under its name.

    Attributes:
        histograms: values (n,) whose distribution is drawn.
        pictures: uint8 (H, W, 3).
        texts: Markdown.
        translations: id, reference and translation of each video.
    """

    histograms: Mapping[str, np.ndarray]
    pictures: Mapping[str, np.ndarray]
    texts: Mapping[str, str]
    translations: Sequence[tuple[str, str, str]] = ()


ALARM = "alarm"
told = logging.getLogger(__name__)


class TrainingLog:
    """Append one JSON object per line to ``run/log.jsonl`` and the same numbers to ``run/tensorboard/``.

    ``resumed_step``: lines of later steps, written by a run that died before its next checkpoint, are
    dropped; with ``validation_left`` also that step's validation, which will be made again. ``watch``: what
    it finds in a line is told in the program's log, as a line of its own (``alarm``) and in TensorBoard.
    ``enabled=False`` (every rank but 0) writes nothing.
    """

    def __init__(
        self,
        run: Path,
        stage: str,
        *,
        resumed_step: int = 0,
        validation_left: bool = False,
        tensorboard: bool = True,
        watch: Watch | None = None,
        enabled: bool = True,
    ) -> None:
        self.stage, self.enabled, self.watch = stage, enabled, watch
        self._board: SummaryWriter | None = None
        if not enabled:
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / "log.jsonl"
        cut_back(path, stage, resumed_step, validation_left=validation_left)
        if watch is not None:
            for line in read_log(run):
                watch(line)  # what it finds there was told then
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
        for alarm in self.watch(line) if self.watch is not None else ():
            told.warning("%s, step %d: %s", self.stage, step, alarm)
            self.write(step, {ALARM: str(alarm)})

    def show(self, step: int, shown: Shown) -> None:
        """Put pictures, histograms and texts of ``step`` into TensorBoard, under the stage's name."""
        board = self._board
        if board is None:
            return
        with report_full_disk(Path(self._file.name)):
            for name, values in shown.histograms.items():
                board.add_histogram(f"{self.stage}/{name}", values, step)
            for name, picture in shown.pictures.items():
                board.add_image(f"{self.stage}/{name}", picture, step, dataformats="HWC")
            for name, text in shown.texts.items():
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


def cut_back(path: Path, stage: str, step: int, *, validation_left: bool = False) -> None:
    """Drop from a log the lines of ``stage`` after ``step``, and a last line that a kill cut in half.

    ``validation_left``: the validation of ``step`` goes too: a kill came between its line and its checkpoint.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        at = entry.get("step", 0)
        again = validation_left and at == step and any(name.startswith("validate/") for name in entry)
        if entry.get("stage") != stage or (at <= step and not again):
            kept.append(line)
    atomic_write(path, "".join(f"{line}\n" for line in kept))


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read ``log.jsonl`` of a run; a run without one gives an empty list."""
    path = run / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
