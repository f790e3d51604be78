"""Reader of OpenASL: American Sign Language from the web, one ``openasl-v1.0.tsv`` and downloaded videos.

The release (github.com/chevalierNoir/OpenASL, ``data/``) has the columns ``vid yid start end raw-text
tokenized-text gloss split``, with times as ``HH:MM:SS.mmm``. The reader uses ``raw-text`` without its outer
and double spaces. The release's ``prep/download.py`` downloads recordings ``YID.mp4``, and
``prep/crop_video.py`` cuts them into sentences, cropped to the signer, as ``VID.mp4`` with ``%`` in place of
every ``:``. Both are searched by name below the folder. A sentence without a video of its own is cut out of
its recording, without the crop. ``valid`` becomes ``dev``. The release names no signers.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from signllm.data.formats.times import check_span, parse_seconds
from signllm.data.formats.video_tree import VideoTree
from signllm.data.source_samples import Annotations, LeftOutSample, OfficialCounts, SourceSample, tidy_text
from signllm.data.split_names import standardize_split
from signllm.data.system_files import list_files_recursively
from signllm.data.tables import Row, read_table
from signllm.errors import UsageError

OFFICIAL: OfficialCounts = {"dev": {"samples": 967}, "test": {"samples": 976}}
_COLUMNS = ("vid", "yid", "start", "end", "raw-text", "split")


def read(src: Path) -> Annotations:
    """Read the release's table and find its videos below ``src``.

    Raises:
        UsageError: there is no such table, or it lacks columns of the release.
    """
    tables = (
        folder / name
        for folder, names in list_files_recursively(src)
        for name in names
        if fnmatch(name.lower(), "openasl-v*.[ct]sv")
    )
    path = next(tables, None)
    if path is None:
        raise UsageError(
            "this is not OpenASL: there is no openasl-v1.0.tsv",
            where=src,
            remedy="give the folder that contains data/openasl-v1.0.tsv and the videos",
        )
    tree = VideoTree(src)
    table = read_table(path, _COLUMNS, remedy="use the file of the release as it is, separated by tabs")
    entries = [_read_row(row, tree) for row in table.rows]
    return Annotations(
        samples=tuple(entry for entry in entries if isinstance(entry, SourceSample)),
        left_out=tuple(entry for entry in entries if isinstance(entry, LeftOutSample)),
        official=OFFICIAL,
        notices=(*table.notices, *tree.notices),
    )


def _read_row(row: Row, tree: VideoTree) -> SourceSample | LeftOutSample:
    """Return the sample of a row, or the reason why it is left out."""
    name, split = row["vid"].strip() or f"line {row.line}", standardize_split(row["split"] or "train")
    if row.problem:
        return LeftOutSample(id=name, split=split, reason=row.problem)
    video, start_s, end_s = tree.find(name.replace(":", "%")) or tree.find(name), None, None
    recording = tree.find(row["yid"].strip())
    if video is None and recording is not None:
        try:
            start_s, end_s = parse_seconds(row["start"]) or 0.0, parse_seconds(row["end"])
            check_span(start_s, end_s)
        except ValueError as error:
            return LeftOutSample(id=name, split=split, reason=f"line {row.line}: {error}")
        if end_s is None:
            return LeftOutSample(id=name, split=split, reason=f"line {row.line} states no end of the sample")
    return SourceSample(
        id=name,
        video=video or recording or tree.expected_path(name, tree.root / "video-clip"),
        text=tidy_text(row["raw-text"]),
        split=split,
        language="English",
        start_s=start_s,
        end_s=end_s,
    )
