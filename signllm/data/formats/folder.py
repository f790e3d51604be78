"""A folder of videos, each beside a ``.txt`` of the same name: for somebody who starts from nothing.

``NAME.mp4`` + ``NAME.txt`` at any depth, or a folder of frames ``NAME/`` + ``NAME.txt``. Where the first
level is named ``train``, ``dev``, ``val`` or ``test``, those are the splits; everything else is ``train``.
"""

from __future__ import annotations

from pathlib import Path

from signllm.data.clip import Annotations, Clip, LeftOut, tidy_text
from signllm.data.frame_folder import is_image
from signllm.data.video_files import is_video_name
from signllm.errors import UsageError

SPLITS = ("train", "dev", "val", "test")


def read(src: Path) -> Annotations:
    """Read all pairs below ``src`` in order of their names; a video or a text alone is left out by name.

    Raises:
        UsageError: ``src`` is no folder, or holds no pair at all.
    """
    if not src.is_dir():
        raise UsageError(
            "there is no such folder", where=src, remedy="give a folder of NAME.mp4 + NAME.txt pairs"
        )
    texts = {path.with_suffix(""): path for path in src.rglob("*.txt") if path.is_file()}
    videos = _videos(src)
    entries = [_entry(src, stem, videos.get(stem, []), texts.get(stem)) for stem in sorted({*texts, *videos})]
    clips = tuple(entry for entry in entries if isinstance(entry, Clip))
    if not clips:
        raise UsageError(
            f"no video with a text beside it ({len(videos)} videos, {len(texts)} texts)",
            where=src,
            remedy="put the sentence of NAME.mp4 into NAME.txt beside it",
        )
    return Annotations(clips=clips, left_out=tuple(entry for entry in entries if isinstance(entry, LeftOut)))


def _videos(src: Path) -> dict[Path, list[Path]]:
    """Return stem → video files and frame folders of that stem."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(src.rglob("*")):
        if is_video_name(path) and path.is_file():
            found.setdefault(path.with_suffix(""), []).append(path)
        elif is_image(path) and path.parent != src and path.parent not in found.get(path.parent, []):
            found.setdefault(path.parent, []).append(path.parent)
    return found


def _entry(src: Path, stem: Path, videos: list[Path], text: Path | None) -> Clip | LeftOut:
    parts = stem.relative_to(src).parts
    split = parts[0] if len(parts) > 1 and parts[0] in SPLITS else "train"
    name = "/".join(parts[1:] if split == parts[0] else parts)
    if text is None:
        return LeftOut(id=name, split=split, reason=f"no {stem.name}.txt beside {videos[0].name}")
    if len(videos) != 1:
        named = ", ".join(video.name for video in videos) or "none"
        return LeftOut(
            id=name, split=split, reason=f"{text.name} needs one video of that name; found: {named}"
        )
    try:
        sentence = tidy_text(text.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        return LeftOut(id=name, split=split, reason=f"{text.name} cannot be read as UTF-8: {error}")
    return Clip(id=name, video=videos[0], text=sentence, split=split)
