"""A folder of videos, each beside a ``.txt`` of the same name: for somebody who starts from nothing.

``NAME.mp4`` + ``NAME.txt`` at any depth, or a folder of frames ``NAME/`` + ``NAME.txt``. Where the first
level is named like a split (``train``, ``dev``, ``val``, ``Test``, ...), those are the splits; everything
else is ``train``. System files are ignored (:mod:`signllm.data.system_files`).
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from signllm.data.frame_folder import is_image
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample, tidy_text
from signllm.data.split_names import is_known_split
from signllm.data.system_files import list_files_recursively
from signllm.data.text_files import is_undecodable, read_text
from signllm.data.video_files import is_video_name
from signllm.errors import UsageError


def read(src: Path) -> Annotations:
    """Read all pairs below ``src`` in order of their names; a video or a text alone is left out by name.

    Raises:
        UsageError: ``src`` is no folder, or holds no pair at all.
    """
    if not src.is_dir():
        raise UsageError(
            "there is no such folder", where=src, remedy="give a folder of NAME.mp4 + NAME.txt pairs"
        )
    texts, videos = _list_files(src)
    notices: list[str] = []
    entries = [
        _entry(stem.relative_to(_to_nfc(src)), videos.get(stem, []), texts.get(stem, []), notices)
        for stem in sorted({*texts, *videos})
    ]
    clips = tuple(entry for entry in entries if isinstance(entry, SourceSample))
    if not clips:
        raise UsageError(
            f"no video with a text beside it ({len(videos)} videos, {len(texts)} texts)",
            where=src,
            remedy="put the sentence of NAME.mp4 into NAME.txt beside it",
        )
    return Annotations(
        samples=clips,
        left_out=tuple(entry for entry in entries if isinstance(entry, LeftOutSample)),
        notices=_summarize(notices),
    )


def _list_files(src: Path) -> tuple[dict[Path, list[Path]], dict[Path, list[Path]]]:
    """Return stem → texts, and stem → video files and frame folders, of that stem."""
    texts: dict[Path, list[Path]] = {}
    videos: dict[Path, list[Path]] = {}
    for folder, names in list_files_recursively(src):
        paths = [folder / name for name in names]
        has_frames = any(map(is_image, paths)) and not any(map(is_video_name, paths))
        if folder != src and has_frames:  # pictures next to videos are previews of them
            videos.setdefault(_to_nfc(folder), []).append(folder)
        for path in paths:
            of_kind = texts if path.suffix.lower() == ".txt" else videos if is_video_name(path) else None
            if of_kind is not None and path.is_file():
                of_kind.setdefault(_to_nfc(path.with_suffix("")), []).append(path)
    return texts, videos


def _to_nfc(path: Path) -> Path:
    """Return a path with each letter as one code point, so that ``é.mp4`` of a Mac fits any ``é.txt``."""
    return Path(unicodedata.normalize("NFC", str(path)))


def _entry(
    stem: Path, videos: list[Path], texts: list[Path], notices: list[str]
) -> SourceSample | LeftOutSample:
    parts = stem.parts
    has_split = len(parts) > 1 and is_known_split(parts[0])
    split, name = (parts[0], "/".join(parts[1:])) if has_split else ("train", "/".join(parts))
    if not texts:
        return LeftOutSample(id=name, split=split, reason=f"no {stem.name}.txt beside {videos[0].name}")
    if len(videos) != 1 or len(texts) != 1:
        named = ", ".join(path.name for path in (*videos, *texts[1:])) or "none"
        return LeftOutSample(
            id=name, split=split, reason=f"{texts[0].name} needs one video of that name; found: {named}"
        )
    try:
        decoded = read_text(texts[0])
    except (OSError, UsageError) as error:
        reason = error.what if isinstance(error, UsageError) else error.strerror
        return LeftOutSample(id=name, split=split, reason=f"{texts[0].name} cannot be read: {reason}")
    if is_undecodable(decoded.text):
        return LeftOutSample(id=name, split=split, reason=f"{texts[0].name} is not UTF-8")
    notices += [f"{texts[0].name}: {decoded.notice}"] if decoded.notice else []
    return SourceSample(id=name, video=videos[0], text=tidy_text(decoded.text), split=split)


def _summarize(notices: list[str]) -> tuple[str, ...]:
    """Return one notice for all texts in another encoding."""
    more = f" (and {len(notices) - 1} more texts)" if len(notices) > 1 else ""
    return (f"{notices[0]}{more}",) if notices else ()
