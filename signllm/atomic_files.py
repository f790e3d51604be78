"""Writing files atomically, and one error message for a full disk.

A file is written under a temporary name in the same folder, flushed to the disk and renamed. A reader
therefore finds the old file, the new file or no file, but never a part of one. safetensors reports a full
disk with an exception of its own; here it becomes the same message as that of any other library.
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
"""Error numbers of a full disk, an exhausted user quota, and a file larger than the file system allows."""
REMEDY = "free some space and give the same command again; it redoes what is unfinished"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and move the written file to ``path`` when the block ends.

    If the block raises, the temporary file is deleted and ``path`` stays as it was.

    Raises:
        UsageError: the disk is full, or the folder or the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with report_full_disk(path):
            _create_unfinished(path, unfinished)
            yield unfinished
            sync(unfinished)
            os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):  # the user needs the first error, not that of the cleanup
            unfinished.unlink()
        raise


def _create_unfinished(path: Path, unfinished: Path) -> None:
    """Create the missing folders and the empty temporary file, so that a wrong path fails before the work."""
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


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a complete file atomically; text is encoded as UTF-8.

    Raises:
        UsageError: as :func:`atomic_file`.
    """
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def report_full_disk(path: Path, what: str = "the disk is full") -> Iterator[None]:
    """Turn any library's exception about a full disk into one message; other exceptions pass unchanged.

    Args:
        path: the file that is being written, for the message.
        what: first words of the message.

    Raises:
        UsageError: the disk is full.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if _error_number(error) not in NO_SPACE:
            raise
        raise UsageError(f"{what}: {describe_free_space(path)}", where=path, remedy=REMEDY) from error


def describe_free_space(path: Path) -> str:
    """Return how many megabytes are free on the disk of ``path``, as words; quotas are not considered."""
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), None)
    if folder is None:
        return "the free space is unknown"
    return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free in {folder}"


def _error_number(error: Exception) -> int | None:
    """Return the system's error number, which safetensors states only at the end of its message."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk and wait for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
