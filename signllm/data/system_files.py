"""Files and folders that an operating system, a NAS or an editor leaves between a dataset's own: never data.

Every reader that lists a folder asks here, so that ``._clip.mp4`` of a Mac, ``@eaDir`` of a NAS and
``$RECYCLE.BIN`` of Windows are ignored everywhere. A path that a user or a table names explicitly is taken
whatever it is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_NAMES = frozenset(
    {
        # macOS, and what its archiver writes into zip files
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
    """Return whether the name of a file or folder is hidden or that of a system's own."""
    lowered = name.lower()
    return lowered.startswith(_PREFIXES) or lowered in _NAMES


def walk_files(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder at or below ``root`` with the names of its files, both in order.

    System files and folders are passed over. Links to folders are followed, each folder once, because links
    may lead round in circles.
    """
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_system_name(name))
        yield Path(folder), sorted(name for name in names if not is_system_name(name))
