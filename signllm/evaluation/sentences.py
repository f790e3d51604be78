"""Files of sentences: plain lines, or ``id|text`` lines that are paired by id whatever their order.

A shifted line or a lost id gives a plausible, wrong score. So nothing is guessed or left out: the two files
must be of the same kind, and ids must match one to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from signllm.errors import UsageError

_KEYED = re.compile(r"^\s*[^\s|]+\s*\|")
_SHOWN = 5


def paired(hypotheses: Path, references: Path) -> tuple[list[str], list[str]]:
    """Read two files and return their sentences in the order of the references.

    Raises:
        UsageError: a file is missing, empty or not UTF-8; only one has ids; ids or line counts differ.
    """
    ours, theirs = _lines(hypotheses), _lines(references)
    if _is_keyed(ours) != _is_keyed(theirs):
        keyed, plain = (hypotheses, references) if _is_keyed(ours) else (references, hypotheses)
        raise UsageError(
            "one file has id|text lines, the other plain lines",
            where=f"{keyed} has ids, {plain} has not",
            remedy="give both files ids, or neither",
        )
    if not _is_keyed(ours):
        if len(ours) != len(theirs):
            raise UsageError(
                f"{len(ours)} hypotheses but {len(theirs)} references",
                where=f"{hypotheses}, {references}",
                remedy="give one line per sentence in both files (an empty line is an empty hypothesis)",
            )
        return ours, theirs
    by_id, expected = _by_id(ours, hypotheses), _by_id(theirs, references)
    _check_ids(by_id, expected, hypotheses, references)
    return [by_id[name] for name in expected], list(expected.values())


def _lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file; a line break at the end starts no further line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"cannot read the file: {error.strerror}", where=path, remedy="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            "the file is not UTF-8 text", where=path, remedy="convert it: iconv -t UTF-8"
        ) from error
    lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    if not any(line.strip() for line in lines):
        raise UsageError(
            "the file holds no sentence", where=path, remedy="give one sentence, or id|text, per line"
        )
    return lines


def _is_keyed(lines: list[str]) -> bool:
    """Tell whether the first line that is not empty begins with ``id|``: then all of them must."""
    return _KEYED.match(next(line for line in lines if line.strip())) is not None


def _by_id(lines: list[str], path: Path) -> dict[str, str]:
    """Parse ``id|text`` lines."""
    sentences: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.split("|")
        if len(fields) != 2:
            raise UsageError(
                f"{len(fields)} fields where id|text has 2",
                where=f"{path}, line {number}",
                remedy="keep id and text only; for the PHOENIX-2014T csv: tail -n +2 FILE | cut -d'|' -f1,7",
            )
        name = fields[0].strip()
        if name in sentences:
            raise UsageError(
                f"the id {name!r} is there twice", where=f"{path}, line {number}", remedy="keep one of them"
            )
        sentences[name] = fields[1].strip()
    return sentences


def _check_ids(ours: Iterable[str], theirs: Iterable[str], hypotheses: Path, references: Path) -> None:
    """Refuse ids that only one of the files has."""
    missing, extra = set(theirs) - set(ours), set(ours) - set(theirs)
    if missing:
        raise UsageError(
            f"{len(missing)} ids have no hypothesis: {_some(missing)}",
            where=hypotheses,
            remedy=f"translate them too, or take them out of {references}",
        )
    if extra:
        raise UsageError(
            f"{len(extra)} ids have no reference: {_some(extra)}",
            where=hypotheses,
            remedy=f"take them out, or add them to {references}",
        )


def _some(ids: set[str]) -> str:
    """Return the first few ids."""
    shown = ", ".join(sorted(ids)[:_SHOWN])
    return f"{shown}, ..." if len(ids) > _SHOWN else shown
