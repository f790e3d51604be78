"""Reader of CSL-Daily: Chinese sentences of daily life, as folders of frames with labels in a pickle.

``sentence_label/`` contains ``split_1.txt`` (``name|split``) and ``csl2020ct_v2.pkl`` (key ``info``: a list
of dicts with ``name``, ``label_char`` and more) or, in some copies, ``video_map.txt`` with the same columns
separated by ``|``. The pickle is parsed without executing it. Frames are
``sentence/frames_512x512/NAME/*.jpg``; copies have folders of other sizes, folders directly in
``sentence/NAME``, or one video ``sentence/NAME.mp4`` per sample. The text consists of the Chinese characters
without spaces, the unit that the papers score. The files state no frame rate; the paper (Zhou et al., CVPR
2021) states 30 frames per second. The signer is the ``P`` number in a name.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from signllm.data.formats.plain_pickle import read_plain_pickle
from signllm.data.formats.video_folders import VideoFolders, list_subfolders
from signllm.data.source_samples import Annotations, LeftOutSample, OfficialCounts, SourceSample
from signllm.data.split_names import standardize_split
from signllm.data.tables import Table, read_table
from signllm.errors import UsageError

FPS = 30.0
OFFICIAL: OfficialCounts = {
    "train": {"samples": 18_401},
    "dev": {"samples": 1_077},
    "test": {"samples": 1_176},
}
MISNAMED = {"S000005_P0004_T00": "S000007_P0003_T00"}
"""One name of ``split_1.txt`` that neither the frames nor the labels have, and the name that these have."""
_FRAMES = "sentence/frames_512x512"
_CLIPS = (_FRAMES, "sentence_frames-512x512/frames_512x512", "frames_512x512", "sentence", "videos", ".")
"""Folders of the videos in the release and in copies, in the order in which they are tried."""


def read(src: Path) -> Annotations:
    """Read the release from its folder.

    Raises:
        UsageError: there is no ``sentence_label``, or its labels are not those of the release.
    """
    labels_folder = next(
        (src / name for name in ("sentence_label", ".") if _has_split_file(src / name)), None
    )
    if labels_folder is None:
        raise UsageError(
            "this is not a CSL-Daily release: sentence_label/split_1.txt is missing",
            where=src,
            remedy="give the folder that contains sentence_label/ and sentence/",
        )
    samples: list[SourceSample] = []
    listed, left_out = _read_splits(labels_folder / "split_1.txt")
    labels, unlabelled = _read_labels(labels_folder)
    folders = VideoFolders()
    frames = folders.choose(_list_candidates(src), list(labels), official=src / _FRAMES, label="CSL-Daily")
    for listed_name, split in listed:
        other = MISNAMED.get(listed_name, listed_name)
        name = listed_name if listed_name in labels else other
        if name in labels:
            video = folders.find(frames, name) or frames / name
            samples.append(_make_sample(name, split, labels[name], video))
        else:
            reason = "it is listed in split_1.txt, but has no label"
            left_out.append(LeftOutSample(id=name, split=split, reason=reason))
    named = {sample.id for sample in samples}
    left_out += [
        LeftOutSample(id=name, split="train", reason="it has a label, but is not listed in split_1.txt")
        for name in labels
        if name not in named
    ]
    return Annotations(
        samples=tuple(samples),
        left_out=(*left_out, *unlabelled),
        official=OFFICIAL,
        notices=tuple(folders.notices),
    )


def _has_split_file(folder: Path) -> bool:
    """Return whether a folder contains the list of splits."""
    return (folder / "split_1.txt").is_file()


def _list_candidates(src: Path) -> list[Path]:
    """Return the folders that may contain the videos, the release's own first."""
    others = [folder for parent in list_subfolders(src) for folder in (parent, *list_subfolders(parent))]
    return [*(src / name for name in _CLIPS), *list_subfolders(src / "sentence"), *others]


def _read_splits(path: Path) -> tuple[list[tuple[str, str]], list[LeftOutSample]]:
    """Return (name, split) of each sample that the release lists, and the rows that cannot be read."""
    table = read_table(path, ("name", "split"), remedy="use the file of the release, lines of name|split")
    good = [(row["name"].strip(), standardize_split(row["split"])) for row in table.rows if not row.problem]
    return good, _list_unusable(table)


def _list_unusable(table: Table) -> list[LeftOutSample]:
    """Return the rows of a table that cannot be read as samples that are left out."""
    return [
        LeftOutSample(id=row.text("name"), split="train", reason=f"{table.path.name}: {row.problem}")
        for row in table.rows
        if row.problem
    ]


def _read_labels(folder: Path) -> tuple[dict[str, str], list[LeftOutSample]]:
    """Return the text of each name, and the rows that cannot be read."""
    pickled, path = folder / "csl2020ct_v2.pkl", folder / "video_map.txt"
    if pickled.is_file():
        try:
            return {
                _check_name(row["name"]): _join_characters(row["label_char"])
                for row in _read_pickled_rows(pickled)
            }, []
        except (KeyError, TypeError):
            raise UsageError(
                "an entry has no name or no characters", where=pickled, remedy="use the file of the release"
            ) from None
    if path.is_file():
        table = read_table(path, ("name", "char"), remedy="use the file of the release")
        labels = {row["name"].strip(): _join_characters(row["char"]) for row in table.rows if not row.problem}
        return labels, _list_unusable(table)
    raise UsageError(
        "there are no labels: neither csl2020ct_v2.pkl nor video_map.txt exists",
        where=folder,
        remedy="unpack the release's sentence_label",
    )


def _read_pickled_rows(path: Path) -> list[Any]:
    """Return the list of labels in the pickle."""
    value = read_plain_pickle(path)
    rows = value.get("info") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise UsageError(
            "the pickle has no list under the key info", where=path, remedy="use csl2020ct_v2.pkl"
        )
    return rows


def _join_characters(characters: Any) -> str:
    """Join a list of characters, or a text of characters and spaces; raise ``TypeError`` otherwise."""
    return unicodedata.normalize("NFC", "".join("".join(characters).split()))


def _check_name(name: Any) -> str:
    """Return the name of a sample, or raise ``TypeError`` if it is not a text."""
    if not isinstance(name, str):
        raise TypeError(f"a name is {type(name).__name__}")
    return name


def _make_sample(name: str, split: str, text: str, video: Path) -> SourceSample:
    """Return the sample of a name, with the signer that the name contains."""
    signer = re.search(r"_P(\d+)_", name)
    return SourceSample(
        id=name,
        video=video,
        text=text,
        split=split,
        language="Chinese",
        signer=f"P{signer[1]}" if signer else "",
        fps=FPS,
    )
