"""Index of all videos below the folder of a dataset, by which readers find a video by its name."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

from signllm.data.split_names import standardize_split
from signllm.data.system_files import list_files_recursively
from signllm.data.video.frame_folder import is_image
from signllm.data.video.video_files import is_video_name


class VideoTree:
    """All videos below a folder by their names without suffix: video files and folders of frames.

    Copies of How2Sign differ in the folders above the videos, and OpenASL prescribes no folders, so a name is
    searched everywhere. If several videos have one name, the one below a folder named like the split is used,
    else the first in the order of paths; :attr:`notices` states for how many names this was the case.

    Args:
        root: folder of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._videos: dict[str, list[Path]] = {}
        self._choices: dict[str, tuple[Path, Path]] = {}
        self._fullest: Path | None = None
        for folder, names in list_files_recursively(root):
            videos = [name for name in names if is_video_name(name)]
            for name in videos:
                self._add(os.path.splitext(name)[0], folder / name)
            if not videos and folder != root and any(is_image(Path(name)) for name in names):
                self._add(folder.name, folder)

    def _add(self, name: str, path: Path) -> None:
        self._videos.setdefault(_to_nfc(name), []).append(path)

    def find(self, stem: str, split: str = "") -> Path | None:
        """Return the video of the name ``stem``, None if there is none.

        Args:
            stem: file name without folders and suffix; ``a.mp4`` finds no video ``a.mp4``, but ``a`` does.
            split: name of the split, by which one of several videos is preferred.
        """
        videos = self._videos.get(_to_nfc(stem), [])
        below = [path for path in videos if split and split in self._splits_of(path)]
        candidates = below or videos
        if len(candidates) > 1:
            self._choices[stem] = (candidates[0], candidates[1])
        return next(iter(candidates), None)

    def expected_path(self, name: str, official: Path) -> Path:
        """Return the expected path of a missing video: in the folder of most videos, else in ``official``."""
        if self._fullest is None and self._videos:
            folders = Counter(videos[0].parent for videos in self._videos.values())
            self._fullest = folders.most_common(1)[0][0]
        return (self._fullest or official) / f"{name}.mp4"

    def _splits_of(self, path: Path) -> set[str]:
        """Return the standard names of all folders above a video, some of which may be splits."""
        return {standardize_split(part) for part in path.relative_to(self.root).parts[:-1]}

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the user: for how many names several videos exist."""
        if not self._choices:
            return ()
        (taken, other) = next(iter(self._choices.values()))
        return (f"{len(self._choices)} names have several videos: {taken} was used, not {other}",)


def _to_nfc(name: str) -> str:
    """Return a name in Unicode form NFC, as tables have it; a Mac writes ``é`` as two code points."""
    return unicodedata.normalize("NFC", name)
