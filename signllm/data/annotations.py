"""Reading the annotations of a dataset by the name of its format; the table of all formats."""

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
    """Read the annotations of the dataset at ``src``.

    Splits get their standard names. A sample whose names cannot be written as UTF-8 is left out.

    Args:
        format: name of the format, a key of ``FORMATS``.
        src: file or folder of the dataset.

    Raises:
        UsageError: the format is unknown, ``src`` does not exist, or it does not have that format.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown dataset format {format!r}", remedy=f"one of: {', '.join(FORMATS)}")
    if not Path(src).exists():
        raise UsageError("there is no such file or folder", where=src, remedy="check the path of the dataset")
    try:
        annotations = FORMATS[format](Path(src))
    except OSError as error:
        raise UsageError(
            f"the dataset cannot be read: {error}", where=src, remedy="use the files of the release"
        ) from None
    unnamed = tuple(_leave_out_unnamed(sample) for sample in annotations.samples if not _is_encodable(sample))
    encodable = replace(
        annotations,
        samples=tuple(sample for sample in annotations.samples if _is_encodable(sample)),
        left_out=tuple(_replace_unencodable(entry) for entry in annotations.left_out) + unnamed,
    )
    return _standardize_splits(encodable)


def _standardize_splits(annotations: Annotations) -> Annotations:
    """Return the annotations with the split names that training and evaluation expect."""
    samples, left_out = annotations.samples, annotations.left_out
    names = standardize_splits([*(sample.split for sample in samples), *(entry.split for entry in left_out)])
    renamed = sorted(f"{name!r} is {standard}" for name, standard in names.items() if name != standard)
    notices = [f"names of splits: {', '.join(renamed)}"] if renamed else []
    others = sorted({*names.values()} - {"train", "dev", "test"})
    if others:
        listed = ", ".join(map(repr, others))
        notices.append(
            f"splits other than train, dev and test are used only where an option names them: {listed}"
        )
    return replace(
        annotations,
        samples=tuple(replace(sample, split=names[sample.split]) for sample in samples),
        left_out=tuple(replace(entry, split=names[entry.split]) for entry in left_out),
        notices=(*annotations.notices, *map(_replace_unencodable_text, notices)),
    )


def _is_encodable(sample: SourceSample) -> bool:
    """Return whether all texts of a sample can be encoded as UTF-8 and its path can exist."""
    names = (sample.id, sample.text, sample.split, sample.language, sample.signer, str(sample.video))
    return "\0" not in str(sample.video) and all(name == _replace_unencodable_text(name) for name in names)


def _leave_out_unnamed(sample: SourceSample) -> LeftOutSample:
    """Return a sample with names that cannot be encoded as left out."""
    reason = "its name or its text is not UTF-8, or the path of its video cannot exist"
    return _replace_unencodable(LeftOutSample(id=sample.id, split=sample.split, reason=reason))


def _replace_unencodable(entry: LeftOutSample) -> LeftOutSample:
    """Return an entry with ``?`` for each character that cannot be encoded."""
    return LeftOutSample(**{name: _replace_unencodable_text(value) for name, value in vars(entry).items()})


def _replace_unencodable_text(text: str) -> str:
    """Return the text with ``?`` for every character that UTF-8 cannot encode, such as a lone surrogate."""
    return text.encode("utf-8", "replace").decode("utf-8")
