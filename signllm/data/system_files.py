"""Recognising files and folders that an operating system, a NAS or an editor leaves in a dataset.

Every reader that lists a folder uses this module, so that ``._clip.mp4`` of a Mac, ``@eaDir`` of a NAS and
``$RECYCLE.BIN`` of Windows are ignored everywhere. A path that a user or a table names explicitly is used
whatever its name is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from signllm.errors import UsageError
from signllm.storage import wait_for_storage

_NAMES = frozenset(
    {
        # macOS, and the files that its archiver adds to zip files
        "__macosx", "icon\r", "network trash folder", "temporary items",
        # Windows
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler",
        "recycled", "system volume information", "found.000",
        # Linux, editors and version control
        "lost+found", "__pycache__", "cvs",
        # Synology, QNAP and other NAS
        "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@tmp", "@sharebin",
        "~snapshot",
    }
)  # fmt: skip
_PREFIXES = (".", "~$", "$recycle.bin")
"""A dot hides a file on Unix (``.DS_Store``, ``._clip.mp4``, ``.Trash-1000``, ``.ipynb_checkpoints``)."""


def is_system_name(name: str) -> bool:
    """Return whether the name of a file or folder is hidden, or is one that a system uses for itself."""
    lowered = name.lower()
    return lowered.startswith(_PREFIXES) or lowered in _NAMES


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the subfolders and of the files in a folder, without system files.

    The call waits for unavailable storage. A link to a folder counts as a folder.

    Raises:
        OSError: the folder does not exist or cannot be read.
    """
    return wait_for_storage(lambda: _list_once(folder), folder)


def _list_once(folder: Path) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_system_name(entry.name):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def list_files_recursively(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder at or below ``root`` with the names of its files, both in sorted order.

    System files and folders are omitted. Links to folders are followed, but each folder is yielded only once,
    because links may form cycles.

    Raises:
        UsageError: a folder cannot be read, so its files would be missing.
    """
    seen: set[str] = set()
    pending = [root]
    while pending:
        folder = pending.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            folders, names = list_folder(folder)
        except OSError as error:
            raise UsageError(
                f"a folder cannot be read: {error.strerror}",
                where=folder,
                remedy="make it readable, or move it out of the dataset",
            ) from None
        yield folder, names
        pending += [folder / name for name in reversed(folders)]
