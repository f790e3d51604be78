"""What a run folder holds, as far as it is there: a report of half a run is still a report.

Whatever is missing or damaged is named in ``problems`` and shown at the end of the page, never raised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from signllm.errors import UsageError

Record = dict[str, Any]
Parsed = TypeVar("Parsed")


@dataclass(kw_only=True)
class RunFolder:
    """The readable files of one run (design, section 4.4).

    Attributes:
        path: the folder.
        config: ``config.json``.
        log: the lines of ``log.jsonl``.
        frozen_log: those of fine-tuning's first phase, with the encoder at rest (``frozen/log.jsonl``).
        words: ``words.json``.
        hypotheses: the lines of ``hypotheses.SPLIT.jsonl`` by split.
        scores: ``scores.SPLIT.json`` by split.
        problems: what could not be read, and why.
    """

    path: Path
    config: Record = field(default_factory=dict)
    log: list[Record] = field(default_factory=list)
    frozen_log: list[Record] = field(default_factory=list)
    words: Record = field(default_factory=dict)
    hypotheses: dict[str, list[Record]] = field(default_factory=dict)
    scores: dict[str, Record] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """The stage that made this run, if its configuration says so."""
        return str(self.config.get("stage", "")) or ("compose" if self.words and not self.log else "run")

    def is_empty(self) -> bool:
        """Tell whether none of the files is there."""
        return not (
            self.config or self.log or self.frozen_log or self.words or self.hypotheses or self.scores
        )

    @property
    def frozen_steps(self) -> int:
        """Steps of the first phase as far as they are logged, 0 where there was none."""
        steps = (finite(record.get("step")) for record in self.frozen_log)
        return max((int(step) for step in steps if step is not None), default=0)

    @property
    def combined_log(self) -> list[Record]:
        """Both phases in one, the steps of ``log`` counted on; lines without a step are left out."""
        phases = ((self.frozen_log, 0), (self.log, self.frozen_steps))
        return [
            {**record, "step": int(step) + before}
            for log, before in phases
            for record in log
            if (step := finite(record.get("step"))) is not None
        ]

    @property
    def most_frames(self) -> int | None:
        """``data.max_frames`` of the run's configuration, if it says so."""
        most = self._data_settings.get("max_frames")
        return most if isinstance(most, int) else None

    @property
    def fps(self) -> float | None:
        """``data.fps`` of the run's configuration, if it says so."""
        fps = self._data_settings.get("fps")
        return float(fps) if isinstance(fps, int | float) and fps > 0 else None

    @property
    def _data_settings(self) -> dict[str, Any]:
        settings = self.config.get("config")
        data = settings.get("data") if isinstance(settings, dict) else None
        return data if isinstance(data, dict) else {}


def read_run(path: Path) -> RunFolder:
    """Read whatever is there.

    Raises:
        UsageError: there is no such folder.
    """
    if not path.is_dir():
        raise UsageError("there is no such run folder", where=path, remedy="give the --run folder of a stage")
    run = RunFolder(path=path)
    run.config = _read(path / "config.json", _object, run.problems) or {}
    run.words = _read(path / "words.json", _object, run.problems) or {}
    run.log = _read(path / "log.jsonl", _objects, run.problems) or []
    run.frozen_log = _read(path / "frozen" / "log.jsonl", _objects, run.problems) or []
    for file in sorted(path.glob("hypotheses.*.jsonl")):
        run.hypotheses[file.name.split(".", 1)[1].removesuffix(".jsonl")] = (
            _read(file, _objects, run.problems) or []
        )
    for file in sorted(path.glob("scores.*.json")):
        run.scores[file.name.split(".", 1)[1].removesuffix(".json")] = (
            _read(file, _object, run.problems) or {}
        )
    return run


def finite(value: object) -> float | None:
    """Return a value of a file as a number, or ``None`` for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def read_object(path: Path) -> Record:
    """Read a JSON object if it is there and whole, else return an empty one."""
    return _read(path, _object, []) or {}


def _read(path: Path, parse: Callable[[str], Parsed], problems: list[str]) -> Parsed | None:
    """Parse a file, or say in ``problems`` why not; a file that is not there is no problem."""
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return None


def _object(text: str) -> Record:
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError(f"holds {type(parsed).__name__}, not an object")
    return parsed


def _objects(text: str) -> list[Record]:
    """Parse JSON lines; a last line cut short by a killed writer is left out."""
    lines = [line for line in text.split("\n") if line.strip()]
    parsed: list[Record] = []
    for place, line in enumerate(lines):
        try:
            parsed.append(_object(line))
        except ValueError:
            if place < len(lines) - 1:
                raise
    return parsed
