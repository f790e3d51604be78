"""RWTH-PHOENIX-Weather 2014 T: German weather forecasts, frames in folders, annotations separated by ``|``.

The annotation files have no quoting: a ``"`` is a character of the text. Their ``video`` column says
``NAME/1/*.png``; in the unpacked release the frames lie in ``NAME/`` itself, in PHOENIX-2014 and some copies
in ``NAME/1/``: both are taken. The release states no frame rate in its files; the broadcast and the papers
have 25 frames per second.
"""

from __future__ import annotations

import os
from pathlib import Path

from signllm.data.clip import Annotations, Clip, LeftOut, OfficialCounts, tidy_text
from signllm.data.formats.rows import Row, rows_of, uneven
from signllm.errors import UsageError

FPS = 25.0
OFFICIAL: OfficialCounts = {
    "train": {"samples": 7_096, "frames": 827_354},
    "dev": {"samples": 519, "frames": 55_775},
    "test": {"samples": 642, "frames": 64_627},
}
_ROOTS = (".", "PHOENIX-2014-T", "PHOENIX-2014-T-release-v3/PHOENIX-2014-T")
_COLUMNS = {"name", "video", "speaker", "translation"}


def read(src: Path) -> Annotations:
    """Read the release from its folder, or from a folder that holds the release.

    Raises:
        UsageError: no annotation files there, or files without the release's columns.
    """
    root = _find_root(src)
    clips: list[Clip] = []
    left_out: list[LeftOut] = []
    for split in ("train", "dev", "test"):
        table = root / f"annotations/manual/PHOENIX-2014-T.{split}.corpus.csv"
        if table.is_file():
            for entry in _rows(table, root / "features/fullFrame-210x260px" / split, split):
                (clips if isinstance(entry, Clip) else left_out).append(entry)  # type: ignore[arg-type]
    return Annotations(clips=tuple(clips), left_out=tuple(left_out), official=OFFICIAL)


def _find_root(src: Path) -> Path:
    for candidate in _ROOTS:
        if any((src / candidate / "annotations/manual").glob("PHOENIX-2014-T.*.corpus.csv")):
            return src / candidate
    raise UsageError(
        "this is not a PHOENIX-2014-T release: annotations/manual/PHOENIX-2014-T.SPLIT.corpus.csv is missing",
        where=src,
        remedy="give the folder phoenix-2014-T.v3/ or PHOENIX-2014-T/ of the unpacked release",
    )


def _rows(table: Path, frames: Path, split: str) -> list[Clip | LeftOut]:
    rows = rows_of(table, _COLUMNS, delimiter="|", written="separated by | without quotes")
    return [_entry(row, line, frames, split) for line, row in rows]


def _entry(row: Row, line: int, frames: Path, split: str) -> Clip | LeftOut:
    name = row["name"] or f"line {line}"
    if left_out := uneven(row, line, id=name, split=split):
        return left_out
    return Clip(
        id=name,
        video=_frame_folder(frames, row["video"] or name),
        text=tidy_text(row["translation"] or ""),
        split=split,
        language="German",
        signer=row["speaker"] or "",
        fps=FPS,
    )


def _frame_folder(frames: Path, video: str) -> Path:
    """Return the folder of the frames of ``NAME/1/*.png``: ``NAME/1`` where it exists, else ``NAME``."""
    folder = frames / video.rsplit("/", 1)[0] if video.endswith((".png", ".jpg")) else frames / video
    return folder if os.path.isdir(folder) or folder.name != "1" else folder.parent
