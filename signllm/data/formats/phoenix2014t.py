"""Reader of RWTH-PHOENIX-Weather 2014 T: German weather forecasts as folders of frames.

The columns of the annotation files are separated by ``|``. The files have no quoting: a ``"`` is a character
of the text. Their ``video`` column contains ``NAME/1/*.png``; in the unpacked release the frames lie in
``NAME/``, in PHOENIX-2014 and some copies in ``NAME/1/``, and both are accepted. The release has the frames
in ``features/fullFrame-210x260px/SPLIT``; copies have resized frames in other folders
(``fullFrame-256x256px``, ``fullFrame-227x227px``), lack the folder of the size or of the split, or have one
video per sample. The files of the release state no frame rate; the broadcast and the papers have 25 frames
per second.
"""

from __future__ import annotations

import os
from pathlib import Path

from signllm.data.formats.video_folders import VideoFolders, list_subfolders
from signllm.data.source_samples import Annotations, LeftOutSample, OfficialCounts, SourceSample, tidy_text
from signllm.data.system_files import is_system_name
from signllm.data.tables import Row, read_table
from signllm.errors import UsageError

FPS = 25.0
OFFICIAL: OfficialCounts = {
    "train": {"samples": 7_096, "frames": 827_354},
    "dev": {"samples": 519, "frames": 55_775},
    "test": {"samples": 642, "frames": 64_627},
}
SPLITS = ("train", "dev", "test")
_FRAMES = "features/fullFrame-210x260px"
_NO_FRAMES = ("annotations", "evaluation", "models", "tracked")
"""Prefixes of folders without full frames; PHOENIX-2014, for example, also has pictures of the right hand."""
_COLUMNS = ("name", "video", "speaker", "translation")


def read(src: Path) -> Annotations:
    """Read the release from its folder, or from a folder that contains the release.

    Raises:
        UsageError: there are no annotation files, or they lack columns of the release.
    """
    tables = _find_tables(src)
    folders = VideoFolders()
    samples: list[SourceSample] = []
    left_out: list[LeftOutSample] = []
    for split, path in tables.items():
        root = path.parents[2] if path.parent.name == "manual" else path.parent
        table = read_table(path, _COLUMNS, remedy="use the file of the release as it is, separated by |")
        folders.notices += table.notices
        names = [_read_video_name(row) for row in table.rows]
        official = root / _FRAMES / split
        frames = folders.choose(_list_candidates(root, split), names, official=official, label=split)
        for row, name in zip(table.rows, names, strict=True):
            entry = _read_row(row, folders.find(frames, name) or frames / name, split)
            (samples if isinstance(entry, SourceSample) else left_out).append(entry)  # type: ignore[arg-type]
    return Annotations(
        samples=tuple(samples), left_out=tuple(left_out), official=OFFICIAL, notices=tuple(folders.notices)
    )


def _find_tables(src: Path) -> dict[str, Path]:
    """Return the annotation file of each split, from the topmost folder at or below ``src`` that has any."""
    names = {f"PHOENIX-2014-T.{split}.corpus.csv": split for split in SPLITS}
    for folder, folders, files in os.walk(src):
        if paths := {names[name]: Path(folder, name) for name in files if name in names}:
            return {split: paths[split] for split in SPLITS if split in paths}
        # The folders of frames contain a million files and no annotations.
        folders[:] = sorted(
            name
            for name in folders
            if not is_system_name(name) and name not in (*SPLITS, "features") and "fullFrame" not in name
        )
    raise UsageError(
        "this is not a PHOENIX-2014-T release: annotations/manual/PHOENIX-2014-T.SPLIT.corpus.csv is missing",
        where=src,
        remedy="give the folder phoenix-2014-T.v3/ or PHOENIX-2014-T/ of the unpacked release",
    )


def _list_candidates(root: Path, split: str) -> list[Path]:
    """Return the folders that may contain the videos of a split, the release's own first."""
    features = root / "features"
    above = [
        *(folder for folder in list_subfolders(features) if folder.name.startswith("fullFrame")),
        *(folder for folder in list_subfolders(root) if folder.name.startswith("fullFrame")),
        *list_subfolders(features),
        features,
        *list_subfolders(root),
        root,
        *(
            inner
            for folder in list_subfolders(root)
            if folder != features
            for inner in list_subfolders(folder)
        ),
    ]
    usable = [folder for folder in above if not folder.name.startswith(_NO_FRAMES)]
    names = (split, "val", "valid", "validation") if split == "dev" else (split,)
    return [candidate for folder in usable for candidate in (*(folder / name for name in names), folder)]


def _read_video_name(row: Row) -> str:
    """Return the folder in the column ``video`` of a row: ``NAME`` of ``NAME/1/*.png``."""
    video = row["video"].strip() or row["name"].strip()
    parts = video.split("/")
    if parts[-1].endswith((".png", ".jpg")):
        parts = parts[:-1]
    if len(parts) > 1 and parts[-1] == "1":
        parts = parts[:-1]
    return "/".join(parts)


def _read_row(row: Row, video: Path, split: str) -> SourceSample | LeftOutSample:
    """Return the sample of a row, or the reason why it is left out."""
    name = row["name"].strip() or f"line {row.line}"
    if row.problem:
        return LeftOutSample(id=name, split=split, reason=row.problem)
    return SourceSample(
        id=name,
        video=video,
        text=tidy_text(row["translation"]),
        split=split,
        language="German",
        signer=row["speaker"].strip(),
        fps=FPS,
    )
