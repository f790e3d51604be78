"""Files that annotations name and that are not there: other spellings of a name, and what is nearest.

A Mac writes ``é`` in file names as two code points where tables have one, and Windows writes backslashes
between folders. What cannot be found is reported with the path that was tried and the nearest one that
exists, because a whole folder under another name is the most common reason.
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
"""Names of a folder that are compared letter by letter; of more, those that begin alike."""


def find_path_by_spelling(folder: Path, name: str) -> Path:
    """Return the path of a file that a table names, in the spelling in which it exists.

    Other spellings are tried only where a name has letters beyond ASCII or backslashes.
    """
    path = folder / name
    if (name.isascii() and "\\" not in name) or "\0" in name or os.path.exists(path):
        return path
    slashed = name.replace("\\", "/")
    forms = [unicodedata.normalize(form, one) for one in (name, slashed) for form in ("NFC", "NFD")]
    return next((folder / form for form in forms if os.path.exists(folder / form)), path)


def check_some_exist(clips: Sequence[SourceSample]) -> None:
    """Raise :class:`UsageError` where not a single video of a dataset exists, before anything is written.

    A storage that does not answer is not taken for an absent file.
    """
    if clips and all(is_missing(clip.video) for clip in clips):
        raise UsageError(
            f"none of the {len(clips)} videos exists: the first would be {clips[0].video}",
            where=find_nearest_existing(clips[0].video),
            remedy="give the dataset with its videos; link them to that place if they lie elsewhere",
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
    """Return that a video is missing: the path that was tried, and the nearest that exists."""
    return f"the video is missing: {path}; {find_nearest_existing(path)}"


def find_nearest_existing(path: Path) -> str:
    """Return a sentence about what exists nearest to a path that does not.

    It is the most similar name in the deepest folder that exists, or that folder itself.
    """
    folder, missing = path.parent, path.name
    while folder != folder.parent and not folder.is_dir():
        folder, missing = folder.parent, folder.name
    names = _list_names(folder, _changed_ns(folder))
    if nearest := _find_nearest_name(missing, names):
        return f"the nearest that exists is {folder / nearest}"
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"the nearest that exists is the folder {folder}, which holds {shown or 'nothing'}"


def _find_nearest_name(name: str, names: tuple[str, ...]) -> str | None:
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
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    return os.path.splitext(_plain_name(name))[0]


def _changed_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=8)
def _list_names(folder: Path, changed_ns: int) -> tuple[str, ...]:
    """Return the names in a folder; it is listed again when it has changed."""
    try:
        return tuple(sorted(name for name in os.listdir(folder) if not is_system_name(name)))
    except OSError:
        return ()
