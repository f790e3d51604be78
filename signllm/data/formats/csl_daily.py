"""CSL-Daily: Chinese daily life, frames in folders, labels in a pickle that is read without running it.

``sentence_label/`` holds ``split_1.txt`` (``name|split``) and ``csl2020ct_v2.pkl`` (key ``info``: a list of
dicts with ``name``, ``label_char`` and more) or, in some copies, ``video_map.txt`` with the same columns
separated by ``|``. Frames are ``sentence/frames_512x512/NAME/*.jpg``. The text is the characters without
spaces, the unit in which the papers score. The files state no frame rate; the paper (Zhou et al., CVPR 2021)
says 30 frames per second. The signer is the ``P`` number of a name.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from signllm.data.clip import Annotations, Clip, LeftOut, OfficialCounts
from signllm.data.formats.plain_pickle import read_plain_pickle
from signllm.errors import UsageError

FPS = 30.0
OFFICIAL: OfficialCounts = {
    "train": {"samples": 18_401},
    "dev": {"samples": 1_077},
    "test": {"samples": 1_176},
}
MISNAMED = {"S000005_P0004_T00": "S000007_P0003_T00"}
"""``split_1.txt`` names one clip as neither the frames nor the labels do."""
_FRAMES = ("sentence/frames_512x512", "sentence_frames-512x512/frames_512x512", "frames_512x512", "sentence")


def read(src: Path) -> Annotations:
    """Read the release from its folder.

    Raises:
        UsageError: no ``sentence_label`` there, or labels that are not the release's.
    """
    labels_folder = next((src / name for name in ("sentence_label", ".") if _split_file(src / name)), None)
    if labels_folder is None:
        raise UsageError(
            "this is not a CSL-Daily release: sentence_label/split_1.txt is missing",
            where=src,
            remedy="give the folder that holds sentence_label/ and sentence/",
        )
    listed, labels = _splits(labels_folder / "split_1.txt"), _labels(labels_folder)
    frames = next((src / name for name in _FRAMES if (src / name).is_dir()), src / _FRAMES[0])
    clips: list[Clip] = []
    left_out: list[LeftOut] = []
    for listed_name, split in listed:
        other = MISNAMED.get(listed_name, listed_name)
        name = listed_name if listed_name in labels else other
        if name in labels:
            clips.append(_clip(name, split, labels[name], frames))
        else:
            left_out.append(LeftOut(id=name, split=split, reason="in split_1.txt, but without a label"))
    named = {clip.id for clip in clips}
    left_out += [
        LeftOut(id=name, split="train", reason="has a label, but is not in split_1.txt")
        for name in labels
        if name not in named
    ]
    return Annotations(clips=tuple(clips), left_out=tuple(left_out), official=OFFICIAL)


def _split_file(folder: Path) -> bool:
    return (folder / "split_1.txt").is_file()


def _splits(path: Path) -> list[tuple[str, str]]:
    rows = [line.strip().split("|") for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    if not rows or rows[0] != ["name", "split"] or any(len(row) != 2 for row in rows):
        raise UsageError("not lines of name|split", where=path, remedy="use the file of the release as it is")
    return [(name, split) for name, split in rows[1:]]


def _labels(folder: Path) -> dict[str, str]:
    """Return name → text."""
    pickled, table = folder / "csl2020ct_v2.pkl", folder / "video_map.txt"
    if pickled.is_file():
        path, rows = pickled, _pickled_rows(pickled)
    elif table.is_file():
        path = table
        with table.open(encoding="utf-8-sig", newline="") as lines:
            rows = [
                {"name": row.get("name"), "label_char": row.get("char")}
                for row in csv.DictReader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
            ]
    else:
        raise UsageError(
            "no labels: neither csl2020ct_v2.pkl nor video_map.txt",
            where=folder,
            remedy="unpack the release's sentence_label",
        )
    try:
        return {_name(row["name"]): _text(row["label_char"]) for row in rows}
    except (KeyError, TypeError):
        raise UsageError(
            "entries without name and characters", where=path, remedy="use the file of the release"
        ) from None


def _pickled_rows(path: Path) -> list[Any]:
    value = read_plain_pickle(path)
    rows = value.get("info") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise UsageError(
            "the pickle has no list under the key info", where=path, remedy="use csl2020ct_v2.pkl"
        )
    return rows


def _text(characters: Any) -> str:
    """Join a list of characters, or a text of them separated by spaces; ``TypeError`` for anything else."""
    return "".join("".join(characters).split())


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name is {type(name).__name__}")
    return name


def _clip(name: str, split: str, text: str, frames: Path) -> Clip:
    signer = re.search(r"_P(\d+)_", name)
    return Clip(
        id=name,
        video=frames / name,
        text=text,
        split=split,
        language="Chinese",
        signer=f"P{signer[1]}" if signer else "",
        fps=FPS,
    )
