"""Which video file carries a name, anywhere below a dataset's folder: one walk, many questions."""

from __future__ import annotations

import os
from pathlib import Path

from signllm.data.video_files import is_video_name


class VideoTree:
    """All videos below a folder by their name without suffix.

    Copies of How2Sign differ in the folders above the videos, and OpenASL prescribes none, so a name is
    looked for everywhere. Of several files of one name the one below a folder named like the split counts,
    then the first in the order of paths.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[str, list[Path]] = {}
        seen: set[str] = set()
        for folder, folders, names in os.walk(root, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # links may lead round in circles
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            for name in sorted(names):
                if is_video_name(name):
                    self._found.setdefault(os.path.splitext(name)[0], []).append(Path(folder) / name)

    def find(self, stem: str, split: str = "") -> Path | None:
        """Return the video of this name, None if there is none."""
        found = self._found.get(stem, [])
        below = [path for path in found if split in path.relative_to(self.root).parts]
        return next(iter(below or found), None)
