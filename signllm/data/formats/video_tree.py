"""Which video carries a name, anywhere below a dataset's folder: one walk, many questions."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

from signllm.data.frame_folder import is_image
from signllm.data.split_names import standardize_split
from signllm.data.system_files import list_files_recursively
from signllm.data.video_files import is_video_name


class VideoTree:
    """All videos below a folder by their name without suffix: files, and folders of frames.

    Copies of How2Sign differ in the folders above the videos, and OpenASL prescribes none, so a name is
    looked for everywhere. Of several videos of one name the one below a folder named like the split counts,
    then the first in the order of paths; :attr:`notices` says for how many names there was a choice.
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
        """Return the video of this name, None if there is none."""
        videos = self._videos.get(_to_nfc(stem), [])
        below = [path for path in videos if split and split in self._splits_of(path)]
        candidates = below or videos
        if len(candidates) > 1:
            self._choices[stem] = (candidates[0], candidates[1])
        return next(iter(candidates), None)

    def expected_path(self, name: str, official: Path) -> Path:
        """Return where a video that is not there would lie: where most videos lie, else in ``official``."""
        if self._fullest is None and self._videos:
            folders = Counter(videos[0].parent for videos in self._videos.values())
            self._fullest = folders.most_common(1)[0][0]
        return (self._fullest or official) / f"{name}.mp4"

    def _splits_of(self, path: Path) -> set[str]:
        return {standardize_split(part) for part in path.relative_to(self.root).parts[:-1]}

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know: names of which several videos exist."""
        if not self._choices:
            return ()
        (taken, other) = next(iter(self._choices.values()))
        return (f"{len(self._choices)} names have several videos: {taken} was taken, not {other}",)


def _to_nfc(name: str) -> str:
    """Return a name with each letter as one code point, as tables have it; a Mac writes two for ``é``."""
    return unicodedata.normalize("NFC", name)
