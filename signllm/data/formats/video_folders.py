"""Finding the folder in which a copy of a release has its videos.

People resize frames, rename folders and make videos of frames. The folder of the publisher is tried first,
then those of known copies, always in the same order. The first folder that contains videos of the annotations
is used for the complete split. If it is not the publisher's, or not the only one, a notice names it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from signllm.data.system_files import list_folder
from signllm.data.video.video_files import is_video_name

_PROBED = 50
"""Number of names of the annotations, evenly spread, that are searched in a folder."""
_MOST_FOLDERS = 50


class VideoFolders:
    """Finds the videos of a release by their names; every folder is listed only once."""

    def __init__(self) -> None:
        self._listings: dict[Path, dict[str, str]] = {}
        self.notices: list[str] = []

    def choose(self, candidates: Sequence[Path], names: Sequence[str], *, official: Path, label: str) -> Path:
        """Return the folder that contains videos of these names; add a notice if it is not the only choice.

        Args:
            candidates: folders in the order of preference, after the publisher's.
            names: names of videos, which may have parts that ``/`` separates.
            official: folder of the publisher, which is returned if no candidate has a video.
            label: purpose of the folder, such as the name of a split, for the notice.
        """
        probed = names[:: max(1, len(names) // _PROBED)]
        matching = [
            folder
            for folder in dict.fromkeys((official, *candidates))
            if any(self.find(folder, name) for name in probed)
        ]
        if not matching:
            return official
        if matching != [official]:
            reason = "" if matching[0] == official else f", because {official} has none"
            others = f"; not used: {', '.join(map(str, matching[1:]))}" if matching[1:] else ""
            self.notices.append(f"{label}: the videos are read from {matching[0]}{reason}{others}")
        return matching[0]

    def find(self, folder: Path, name: str) -> Path | None:
        """Return the video of this name in a folder, a folder of frames or a video file, or None.

        The frames may lie one level deeper, in ``NAME/1``, as in PHOENIX-2014.
        """
        parent, _, last = name.rpartition("/")
        directory = folder / parent if parent else folder
        if directory not in self._listings:
            self._listings[directory] = _list_videos(directory)
        entry = self._listings[directory].get(_to_nfc(last))
        if entry is None:
            return None
        path = directory / entry
        deeper = path / "1"
        return deeper if not is_video_name(entry) and deeper.is_dir() else path


def _list_videos(folder: Path) -> dict[str, str]:
    """Return the entry of each video name in a folder; a folder has precedence over a video of its name."""
    try:
        folders, files = list_folder(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    videos: dict[str, str] = {}
    for entry in filter(is_video_name, files):
        videos.setdefault(os.path.splitext(_to_nfc(entry))[0], entry)
    return videos | {_to_nfc(entry): entry for entry in folders}


def _to_nfc(name: str) -> str:
    """Return a name in Unicode form NFC; a Mac writes ``é`` as two code points."""
    return unicodedata.normalize("NFC", name)


def list_subfolders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder in the order of their names, without system folders.

    The list is empty if the folder does not exist, or has so many subfolders that these must be the videos.
    """
    try:
        names, _ = list_folder(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names] if len(names) <= _MOST_FOLDERS else []
