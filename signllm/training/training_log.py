"""The log of a training run, ``log.jsonl``, written by rank 0.

It is truncated to the step that a run resumes from, so that the log of a killed and resumed run reads as if
the run had never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from signllm.atomic_files import atomic_write, report_full_disk

ALARM = "alarm"


class TrainingLog:
    """Append one JSON object per line to ``run/log.jsonl``.

    Args:
        run: the run folder.
        stage: name of the stage, written into every line.
        resumed_step: the step that training resumes from. Lines of later steps, which a run wrote that died
            before its next checkpoint, are removed.
        validation_left: also remove the validation of ``resumed_step``, because it will be repeated.
        enabled: False writes nothing; every rank but rank 0 passes it.
    """

    def __init__(
        self,
        run: Path,
        stage: str,
        *,
        resumed_step: int = 0,
        validation_left: bool = False,
        enabled: bool = True,
    ) -> None:
        self.stage, self.enabled = stage, enabled
        if not enabled:
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / "log.jsonl"
        truncate_log(path, stage, resumed_step, validation_left=validation_left)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the values of ``step`` as a line, and return the line."""
        line = {"stage": self.stage, "step": step, **values}
        if self.enabled:
            with report_full_disk(Path(self._file.name)):
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
        return line

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self._file.close()


def truncate_log(path: Path, stage: str, step: int, *, validation_left: bool = False) -> None:
    """Remove the lines of ``stage`` after ``step`` from a log, and a last line that is incomplete.

    Args:
        path: the log.
        stage: the stage whose lines are removed.
        step: the step from which training resumes.
        validation_left: also remove the validation of ``step`` and what was logged after it: the job was
            killed after these lines and before the checkpoint that would record them.
    """
    if not path.exists():
        return
    kept, is_repeated = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        line_step = entry.get("step", 0)
        if entry.get("stage") == stage and validation_left and line_step == step:
            is_repeated = is_repeated or any(name.startswith("validate/") for name in entry)
        if entry.get("stage") != stage or (line_step <= step and not is_repeated):
            kept.append(line)
    atomic_write(path, "".join(f"{line}\n" for line in kept))


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``log.jsonl``; an empty list if there is none."""
    path = run / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
