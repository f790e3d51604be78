"""The datasets that can be sharded: format name → reader. The door to ``formats/``."""

from __future__ import annotations

import csv
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
    try:
        found = FORMATS[format](Path(src))
    except UsageError:
        raise
    except UnicodeDecodeError as error:
        raise UsageError(f"a table is not UTF-8: {error}", where=src, remedy="save it as UTF-8") from None
    except (csv.Error, OSError) as error:
        raise UsageError(
            f"a table cannot be read: {error}", where=src, remedy="use the files of the release"
        ) from None
    unnamed = tuple(_unnamed(clip) for clip in found.clips if not _is_named(clip))
    return Annotations(
        clips=tuple(clip for clip in found.clips if _is_named(clip)),
        left_out=tuple(_replaced(entry) for entry in found.left_out) + unnamed,
        official=found.official,
    )


def _is_named(clip: Clip) -> bool:
    """Say whether all that a clip is called can be written as UTF-8 and asked of a file system."""
    names = (clip.id, clip.text, clip.split, clip.language, clip.signer, str(clip.video))
    return "\0" not in str(clip.video) and all(name == _replaced_text(name) for name in names)


def _unnamed(clip: Clip) -> LeftOut:
    reason = "its name or text is not UTF-8, or its video no possible file name"
    return _replaced(LeftOut(id=clip.id, split=clip.split, reason=reason))


def _replaced(entry: LeftOut) -> LeftOut:
    return LeftOut(**{name: _replaced_text(value) for name, value in vars(entry).items()})


def _replaced_text(text: str) -> str:
    """Return the text with ``?`` for what UTF-8 cannot write: half characters, bytes of other encodings."""
    return text.encode("utf-8", "replace").decode("utf-8")
