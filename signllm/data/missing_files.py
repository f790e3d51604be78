"""Missing files that annotations name: other spellings of a name, and the nearest existing path.

A Mac writes ``é`` in file names as two code points where tables have one, and Windows writes backslashes
between folders. A missing file is reported with the path that was tried and the nearest path that exists,
because the most common reason is a folder with another name.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from signllm.data.source_samples import SourceSample
from signllm.data.system_files import is_system_name
from signllm.errors import UsageError

_SHOWN = 5
_MOST_COMPARED = 2000
"""Largest number of names that are compared letter by letter; larger folders are filtered by prefix first."""


def find_path_by_spelling(folder: Path, name: str) -> Path:
    """Return the path of a file that a table names, in the spelling in which the file exists.

    Other spellings are tried only if the name has letters beyond ASCII or backslashes. If no spelling exists,
    the path has the spelling of the table.
    """
    path = folder / name
    if (name.isascii() and "\\" not in name) or "\0" in name or os.path.exists(path):
        return path
    slashed = name.replace("\\", "/")
    spellings = [
        unicodedata.normalize(form, variant) for variant in (name, slashed) for form in ("NFC", "NFD")
    ]
    return next((folder / spelling for spelling in spellings if os.path.exists(folder / spelling)), path)


def check_some_exist(samples: Sequence[SourceSample]) -> None:
    """Raise :class:`UsageError` if none of the videos of a dataset exists, before anything is written.

    A file on storage that does not answer does not count as missing.
    """
    if samples and all(is_missing(sample.video) for sample in samples):
        raise UsageError(
            f"none of the {len(samples)} videos exists: the first would be {samples[0].video}",
            where=find_nearest_existing(samples[0].video),
            remedy="give the dataset with its videos; if they are elsewhere, link them to that path",
        )


def is_missing(path: Path) -> bool:
    """Return whether a path certainly does not exist."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def describe_missing(path: Path) -> str:
    """Return a sentence with the path of a missing video and the nearest path that exists."""
    return f"the video is missing: {path}; {find_nearest_existing(path)}"


def find_nearest_existing(path: Path) -> str:
    """Return a sentence with the existing path that is nearest to a missing path.

    It is the most similar name in the deepest existing parent folder, or that folder itself.
    """
    folder, missing = path.parent, path.name
    while folder != folder.parent and not folder.is_dir():
        folder, missing = folder.parent, folder.name
    names = _list_names(folder, _changed_ns(folder))
    if nearest := _find_nearest_name(missing, names):
        return f"the nearest existing path is {folder / nearest}"
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"the nearest existing path is the folder {folder}, which contains {shown or 'nothing'}"


def _find_nearest_name(name: str, names: tuple[str, ...]) -> str | None:
    """Return the most similar name: equal but for case, then but for the suffix, then in most letters."""
    plain = _plain_name(name)
    same = [other for other in names if _plain_name(other) == plain]
    same += [other for other in names if _stem(other) == _stem(name)]
    if same:
        return same[0]
    if len(names) > _MOST_COMPARED:
        names = tuple(other for other in names if _plain_name(other)[:4] == plain[:4])[:_MOST_COMPARED]
    by_plain = {_plain_name(other): other for other in names}
    close = difflib.get_close_matches(plain, by_plain, n=1, cutoff=0.5)
    return by_plain[close[0]] if close else None


def _plain_name(name: str) -> str:
    """Return a name in Unicode form NFC and lower case."""
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    """Return a plain name without its suffix."""
    return os.path.splitext(_plain_name(name))[0]


def _changed_ns(folder: Path) -> int:
    """Return the modification time of a folder in nanoseconds, 0 if it cannot be read."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=8)
def _list_names(folder: Path, changed_ns: int) -> tuple[str, ...]:
    """Return the names in a folder, from the cache unless its modification time ``changed_ns`` is new."""
    try:
        return tuple(sorted(name for name in os.listdir(folder) if not is_system_name(name)))
    except OSError:
        return ()
