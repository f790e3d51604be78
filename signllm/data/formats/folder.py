"""Reader of a folder of videos, each with its sentence in a ``.txt`` file of the same name.

The folder contains, at any depth, pairs ``NAME.mp4`` + ``NAME.txt``, or a folder of frames ``NAME/`` +
``NAME.txt``. Folders of the first level that are named like a split (``train``, ``dev``, ``val``, ``Test``,
...) are the splits; everything else belongs to ``train``. System files are ignored
(:mod:`signllm.data.system_files`).
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample, tidy_text
from signllm.data.split_names import is_known_split
from signllm.data.system_files import list_files_recursively
from signllm.data.text_files import is_undecodable, read_text
from signllm.data.video.frame_folder import is_image
from signllm.data.video.video_files import is_video_name
from signllm.errors import UsageError


def read(src: Path) -> Annotations:
    """Read all pairs below ``src`` in the order of their names; a video or text without partner is left out.

    Raises:
        UsageError: ``src`` is not a folder, or contains no pair.
    """
    if not src.is_dir():
        raise UsageError(
            "there is no such folder", where=src, remedy="give a folder of NAME.mp4 + NAME.txt pairs"
        )
    texts, videos = _list_files(src)
    notices: list[str] = []
    entries = [
        _read_pair(stem.relative_to(_to_nfc(src)), videos.get(stem, []), texts.get(stem, []), notices)
        for stem in sorted({*texts, *videos})
    ]
    samples = tuple(entry for entry in entries if isinstance(entry, SourceSample))
    if not samples:
        raise UsageError(
            f"no video has a text of the same name ({len(videos)} videos, {len(texts)} texts)",
            where=src,
            remedy="write the sentence of NAME.mp4 into NAME.txt in the same folder",
        )
    return Annotations(
        samples=samples,
        left_out=tuple(entry for entry in entries if isinstance(entry, LeftOutSample)),
        notices=_summarize(notices),
    )


def _list_files(src: Path) -> tuple[dict[Path, list[Path]], dict[Path, list[Path]]]:
    """Return the text files, and the video files and frame folders, by their paths without suffix."""
    texts: dict[Path, list[Path]] = {}
    videos: dict[Path, list[Path]] = {}
    for folder, names in list_files_recursively(src):
        paths = [folder / name for name in names]
        has_frames = any(map(is_image, paths)) and not any(map(is_video_name, paths))
        if folder != src and has_frames:  # pictures in a folder with videos are previews of these
            videos.setdefault(_to_nfc(folder), []).append(folder)
        for path in paths:
            kind = texts if path.suffix.lower() == ".txt" else videos if is_video_name(path) else None
            if kind is not None and path.is_file():
                kind.setdefault(_to_nfc(path.with_suffix("")), []).append(path)
    return texts, videos


def _to_nfc(path: Path) -> Path:
    """Return a path in Unicode form NFC, so that ``é.mp4`` of a Mac matches any ``é.txt``."""
    return Path(unicodedata.normalize("NFC", str(path)))


def _read_pair(
    stem: Path, videos: list[Path], texts: list[Path], notices: list[str]
) -> SourceSample | LeftOutSample:
    """Return the sample of a video and its text, or the reason why it is left out."""
    parts = stem.parts
    has_split = len(parts) > 1 and is_known_split(parts[0])
    split, name = (parts[0], "/".join(parts[1:])) if has_split else ("train", "/".join(parts))
    if not texts:
        return LeftOutSample(id=name, split=split, reason=f"there is no {stem.name}.txt for {videos[0].name}")
    if len(videos) != 1 or len(texts) != 1:
        listed = ", ".join(path.name for path in (*videos, *texts[1:])) or "none"
        return LeftOutSample(
            id=name, split=split, reason=f"{texts[0].name} needs one video of that name; found: {listed}"
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
    """Return one notice for all texts that are not UTF-8."""
    more = f" (and {len(notices) - 1} more texts)" if len(notices) > 1 else ""
    return (f"{notices[0]}{more}",) if notices else ()
