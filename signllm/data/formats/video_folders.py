"""Where a copy of a release keeps its clips: people resize frames, rename folders and make videos of frames.

The publisher's folder is tried first, then those that copies have, always in the same order. The first that
has clips of the annotations is taken for all of a split; if it is not the publisher's, or not the only one, a
notice names it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from signllm.data.system_files import list_folder
from signllm.data.video_files import is_video_name

_PROBED = 50
"""Clips of the annotations, evenly spread, by which a folder is recognised."""
_MOST_FOLDERS = 50


class VideoFolders:
    """Finds the clips of a release by their names; lists every folder once."""

    def __init__(self) -> None:
        self._listings: dict[Path, dict[str, str]] = {}
        self.notices: list[str] = []

    def choose(self, candidates: Sequence[Path], names: Sequence[str], *, official: Path, label: str) -> Path:
        """Return the folder that holds clips of these names; add a notice where there was a choice.

        Args:
            candidates: folders in the order of preference, after the publisher's.
            names: names of clips, which may have parts separated by ``/``.
            official: the publisher's folder, which is returned where no candidate has a clip.
            label: what the folder is for, such as a split, for the notice.
        """
        probed = names[:: max(1, len(names) // _PROBED)]
        holding = [
            folder
            for folder in dict.fromkeys((official, *candidates))
            if any(self.find(folder, name) for name in probed)
        ]
        if not holding:
            return official
        if holding != [official]:
            reason = "" if holding[0] == official else f", because {official} has none"
            others = f"; not taken: {', '.join(map(str, holding[1:]))}" if holding[1:] else ""
            self.notices.append(f"{label}: clips are taken from {holding[0]}{reason}{others}")
        return holding[0]

    def find(self, folder: Path, name: str) -> Path | None:
        """Return the clip of this name in a folder: its folder of frames, or its video file.

        Frames may lie one level deeper, in ``NAME/1``, as those of PHOENIX-2014.
        """
        parent, _, last = name.rpartition("/")
        place = folder / parent if parent else folder
        if place not in self._listings:
            self._listings[place] = _list_videos(place)
        entry = self._listings[place].get(_to_nfc(last))
        if entry is None:
            return None
        path = place / entry
        deeper = path / "1"
        return deeper if not is_video_name(entry) and deeper.is_dir() else path


def _list_videos(folder: Path) -> dict[str, str]:
    """Return name → entry of each folder and video in a folder; a folder comes before a video of its name."""
    try:
        folders, files = list_folder(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    videos: dict[str, str] = {}
    for entry in filter(is_video_name, files):
        videos.setdefault(os.path.splitext(_to_nfc(entry))[0], entry)
    return videos | {_to_nfc(entry): entry for entry in folders}


def _to_nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def list_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder in order, without those of systems.

    There are none where the folder does not exist, or where it has so many that they must be the clips.
    """
    try:
        names, _ = list_folder(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names] if len(names) <= _MOST_FOLDERS else []
