"""The contents of a run folder for reports, as far as the files exist.

Missing files are ignored. Damaged files are named in ``problems``, which the report shows at its end; they
never raise an error, so that unfinished runs have a report too.
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
    """The contents of the files of one run.

    Attributes:
        path: run folder.
        config: contents of ``config.json``.
        log: lines of ``log.jsonl``.
        frozen_log: lines of ``frozen/log.jsonl``, the first phase of fine-tuning with a frozen encoder.
        words: contents of ``words.json``.
        hypotheses: split → lines of ``hypotheses.SPLIT.jsonl``.
        scores: split → contents of ``scores.SPLIT.json``.
        problems: files that could not be read, and the reasons.
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
        """The stage of the run according to its configuration, ``run`` if that is not known."""
        return str(self.config.get("stage", "")) or ("compose" if self.words and not self.log else "run")

    def is_empty(self) -> bool:
        """Return whether none of the files exists."""
        return not (
            self.config or self.log or self.frozen_log or self.words or self.hypotheses or self.scores
        )

    @property
    def frozen_steps(self) -> int:
        """The last logged step of the first phase, 0 if there was none."""
        steps = (finite(record.get("step")) for record in self.frozen_log)
        return max((int(step) for step in steps if step is not None), default=0)

    @property
    def combined_log(self) -> list[Record]:
        """The logs of both phases with continued step numbers; lines without a step are omitted."""
        phases = ((self.frozen_log, 0), (self.log, self.frozen_steps))
        return [
            {**record, "step": int(step) + offset}
            for log, offset in phases
            for record in log
            if (step := finite(record.get("step"))) is not None
        ]

    @property
    def most_frames(self) -> int | None:
        """``data.max_frames`` of the configuration, None if it is not known."""
        most = self._data_settings.get("max_frames")
        return most if isinstance(most, int) else None

    @property
    def fps(self) -> float | None:
        """``data.fps`` of the configuration, None if it is not known."""
        fps = self._data_settings.get("fps")
        return float(fps) if isinstance(fps, int | float) and fps > 0 else None

    @property
    def _data_settings(self) -> dict[str, Any]:
        settings = self.config.get("config")
        data = settings.get("data") if isinstance(settings, dict) else None
        return data if isinstance(data, dict) else {}


def read_run(path: Path) -> RunFolder:
    """Read the files of a run folder that exist.

    Raises:
        UsageError: There is no such folder.
    """
    if not path.is_dir():
        raise UsageError("there is no such run folder", where=path, remedy="give the --run folder of a stage")
    run = RunFolder(path=path)
    run.config = _read(path / "config.json", _parse_object, run.problems) or {}
    run.words = _read(path / "words.json", _parse_object, run.problems) or {}
    run.log = _read(path / "log.jsonl", _parse_objects, run.problems) or []
    run.frozen_log = _read(path / "frozen" / "log.jsonl", _parse_objects, run.problems) or []
    for file in sorted(path.glob("hypotheses.*.jsonl")):
        run.hypotheses[file.name.split(".", 1)[1].removesuffix(".jsonl")] = (
            _read(file, _parse_objects, run.problems) or []
        )
    for file in sorted(path.glob("scores.*.json")):
        run.scores[file.name.split(".", 1)[1].removesuffix(".json")] = (
            _read(file, _parse_object, run.problems) or {}
        )
    return run


def finite(value: object) -> float | None:
    """Return a value as a float if it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def read_object(path: Path) -> Record:
    """Return the JSON object in a file, or an empty one if the file is missing or damaged."""
    return _read(path, _parse_object, []) or {}


def _read(path: Path, parse: Callable[[str], Parsed], problems: list[str]) -> Parsed | None:
    """Return the parsed file, or None; a damaged file is added to ``problems``, a missing one is not."""
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return None


def _parse_object(text: str) -> Record:
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError(f"contains {type(parsed).__name__}, not an object")
    return parsed


def _parse_objects(text: str) -> list[Record]:
    """Parse JSON lines; an incomplete last line, which a killed process leaves, is ignored."""
    lines = [line for line in text.split("\n") if line.strip()]
    parsed: list[Record] = []
    for place, line in enumerate(lines):
        try:
            parsed.append(_parse_object(line))
        except ValueError:
            if place < len(lines) - 1:
                raise
    return parsed
