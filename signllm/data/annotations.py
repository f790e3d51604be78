"""The datasets that can be sharded: format name → reader. The door to ``formats/``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from signllm.data.clip import Annotations, Clip, LeftOut
from signllm.data.formats import csl_daily, folder, how2sign, openasl, phoenix2014t, table
from signllm.errors import UsageError

__all__ = ["FORMATS", "Annotations", "Clip", "LeftOut", "read_annotations"]

FORMATS: dict[str, Callable[[Path], Annotations]] = {
    "phoenix2014t": phoenix2014t.read,
    "csl-daily": csl_daily.read,
    "how2sign": how2sign.read,
    "openasl": openasl.read,
    "table": table.read,
    "folder": folder.read,
}


def read_annotations(format: str, src: Path | str) -> Annotations:
    """Read the dataset at ``src``, laid out as ``format`` says.

    Raises:
        UsageError: unknown format, nothing at ``src``, or not that layout.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown dataset format {format!r}", remedy=f"one of: {', '.join(FORMATS)}")
    if not Path(src).exists():
        raise UsageError("there is no such file or folder", where=src, remedy="check the path of the dataset")
    return FORMATS[format](Path(src))
