"""Files that are there whole or not at all, and one message when the disk is full.

A file is written beside its place, synced and renamed: whatever reads it later meets the old one, the new
one, or none. safetensors reports a full disk by an exception of its own; here it becomes the same message.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from signllm.errors import UsageError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, the user's share of it, or the largest file that it allows."""
REMEDY = "free some space and give the same command again; what is unfinished is redone"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give out a path to write to; what was written there takes the place of ``path`` at the end.

    Raises:
        UsageError: the disk is full, or nothing can be written there; nothing half-written stays.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with full_disk_told(path):
            _begin(path, unfinished)
            yield unfinished
            sync(unfinished)
            os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):  # of the two, what went wrong first is to be told
            unfinished.unlink()
        raise


def _begin(path: Path, unfinished: Path) -> None:
    """Create the unfinished file and the folders that lack: what is wrong with a place is told now."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        unfinished.touch()
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise UsageError(
            f"cannot be written: {error.strerror}",
            where=path,
            remedy="name a file in a folder that you may write to",
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        UsageError: as :func:`whole_file`.
    """
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def full_disk_told(path: Path, what: str = "the disk is full") -> Iterator[None]:
    """Turn any library's account of a full disk into one message about ``path``; let other errors through.

    Raises:
        UsageError: the disk is full.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if _number(error) not in NO_SPACE:
            raise
        raise UsageError(f"{what}: {free_space(path)}", where=path, remedy=REMEDY) from error


def free_space(path: Path) -> str:
    """Return how many megabytes are free where a path is, in words; of a quota the system does not tell."""
    folder = next((place for place in (path, *path.parents) if place.is_dir()), None)
    if folder is None:
        return "the free space is unknown"
    return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free in {folder}"


def _number(error: Exception) -> int | None:
    """Return the system's error number; safetensors tells it at the end of its message only."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
