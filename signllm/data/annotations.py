"""The datasets that can be sharded: format name → reader. The door to ``formats/``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from signllm.data.formats import csl_daily, folder, how2sign, openasl, phoenix2014t, table
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample
from signllm.data.split_names import standardize_splits
from signllm.errors import UsageError

__all__ = ["FORMATS", "Annotations", "SourceSample", "LeftOutSample", "read_annotations"]

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
        annotations = FORMATS[format](Path(src))
    except OSError as error:
        raise UsageError(
            f"a table cannot be read: {error}", where=src, remedy="use the files of the release"
        ) from None
    unnamed = tuple(_leave_out_unnamed(clip) for clip in annotations.samples if not _is_named(clip))
    named = replace(
        annotations,
        samples=tuple(clip for clip in annotations.samples if _is_named(clip)),
        left_out=tuple(_replace_unencodable(entry) for entry in annotations.left_out) + unnamed,
    )
    return _standardize_splits(named)


def _standardize_splits(annotations: Annotations) -> Annotations:
    """Return the annotations with the splits under the names that training and evaluation look for."""
    clips, left_out = annotations.samples, annotations.left_out
    names = standardize_splits([*(clip.split for clip in clips), *(entry.split for entry in left_out)])
    renamed = sorted(f"{name!r} is {standard}" for name, standard in names.items() if name != standard)
    notices = [f"names of splits: {', '.join(renamed)}"] if renamed else []
    others = sorted({*names.values()} - {"train", "dev", "test"})
    if others:
        named = ", ".join(map(repr, others))
        notices.append(f"splits other than train, dev and test are used only where they are named: {named}")
    return replace(
        annotations,
        samples=tuple(replace(clip, split=names[clip.split]) for clip in clips),
        left_out=tuple(replace(entry, split=names[entry.split]) for entry in left_out),
        notices=(*annotations.notices, *map(_replace_unencodable_text, notices)),
    )


def _is_named(clip: SourceSample) -> bool:
    """Say whether all that a clip is called can be written as UTF-8 and asked of a file system."""
    names = (clip.id, clip.text, clip.split, clip.language, clip.signer, str(clip.video))
    return "\0" not in str(clip.video) and all(name == _replace_unencodable_text(name) for name in names)


def _leave_out_unnamed(clip: SourceSample) -> LeftOutSample:
    reason = "its name or text is not UTF-8, or its video no possible file name"
    return _replace_unencodable(LeftOutSample(id=clip.id, split=clip.split, reason=reason))


def _replace_unencodable(entry: LeftOutSample) -> LeftOutSample:
    return LeftOutSample(**{name: _replace_unencodable_text(value) for name, value in vars(entry).items()})


def _replace_unencodable_text(text: str) -> str:
    """Return the text with ``?`` for what UTF-8 cannot write: half characters, bytes of other encodings."""
    return text.encode("utf-8", "replace").decode("utf-8")
