"""Looking at finished shards: what is in them, whether it is as it was written, what videos look like."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from signllm.data.index import ShardIndex, ShardSample, Split
from signllm.data.remote import fetch
from signllm.data.sharding import in_processes
from signllm.data.stored import stored_frames
from signllm.data.tar import file_sha256, tar_members
from signllm.data.video import VideoError
from signllm.errors import UsageError
from signllm.progress import progress

if TYPE_CHECKING:
    from PIL import Image

_SHOWN_FRAMES = 6
_TILE = 112


def shards_info(out: Path | str) -> dict[str, Any]:
    """Return what is in the shards, and how they were made.

    Of every split samples, hours, frames, signers, languages and text statistics; of every two splits what
    they share: the clips of the later one whose text stands in the earlier one too, and the signers of both.
    """
    index = ShardIndex(out)
    splits = [index.split(name) for name in index.splits]
    shared = {f"{one.name}-{other.name}": _overlap(one, other) for one, other in combinations(splits, 2)}
    made = {name: index.manifest[name] for name in ("made", "clips_in_source", "left_out")}
    return {
        "root": str(index.root),
        "splits": {split.name: _split_info(split) for split in splits},
        "overlap": shared,
        **made,
        "warnings": index.manifest.get("warnings", []),
    }


def _split_info(split: Split) -> dict[str, Any]:
    texts = [sample.text for sample in split.samples]
    frames = [sample.frames for sample in split.samples]
    return {
        "samples": len(split),
        "shards": len(split.tars),
        "hours": round(sum(sample.frames / sample.fps for sample in split.samples) / 3600, 4),
        "frames": sum(frames),
        "shortest_frames": min(frames),
        "longest_frames": max(frames),
        "signers": dict(Counter(sample.signer or "unknown" for sample in split.samples)),
        "languages": dict(Counter(sample.language for sample in split.samples)),
        "distinct_texts": len(set(texts)),
        **_text_statistics(texts),
    }


def _text_statistics(texts: Sequence[str]) -> dict[str, Any]:
    """Count words, or characters where no text has a space (Chinese, Japanese, Thai)."""
    is_spaced = any(" " in text for text in texts)
    words = [text.split() if is_spaced else list(text) for text in texts]
    lengths, vocabulary = [len(text) for text in words], Counter(chain.from_iterable(words))
    unit = "words" if is_spaced else "characters"
    return {
        f"{unit}_per_text": round(sum(lengths) / len(lengths), 2),
        f"fewest_{unit}": min(lengths),
        f"median_{unit}": median(lengths),
        f"most_{unit}": max(lengths),
        f"distinct_{unit}": len(vocabulary),
        f"{unit}_seen_once": sum(count == 1 for count in vocabulary.values()),
    }


def _overlap(one: Split, other: Split) -> dict[str, int]:
    texts = {sample.text for sample in one.samples}
    signers = [{sample.signer for sample in split.samples} - {""} for split in (one, other)]
    return {
        "texts": sum(sample.text in texts for sample in other.samples),
        "signers": len(signers[0] & signers[1]),
    }


def shards_verify(
    out: Path | str, *, decode: bool = True, workers: int = 1, show_progress: bool = False
) -> dict[str, Any]:
    """Check every byte: sha256 of each tar, members against the index, texts, each video decoded and counted.

    Args:
        out: the folder of shards or its address, from which each is fetched whole into a temporary folder.
        decode: decode every video; without, only bytes and structure are checked.
        workers: processes, each of which checks a shard at a time.
        show_progress: draw a progress bar on standard error.

    Returns:
        counts of what was checked.

    Raises:
        UsageError: damage, with up to ten places of it.
    """
    if workers < 1:
        raise UsageError(f"workers = {workers}", remedy="at least 1")
    index = ShardIndex(out)
    splits = [index.split(name) for name in index.splits]
    shards = [shard for split in splits for shard in _shards_of(split)]
    entries = [entry for split in splits for entry in index.manifest["splits"][split.name]["shards"]]
    jobs = ((shard, entry, decode) for shard, entry in zip(shards, entries, strict=True))
    damage: list[str] = []
    with (
        progress(sum(map(len, splits)), "verifying", unit="clips", enabled=show_progress) as bar,
        closing(in_processes(_shard_damage, jobs, workers)) as checked,
    ):
        for shard, found in zip(shards, checked, strict=True):
            damage += found
            bar.advance(len(shard))
    damage += [said for split in splits for said in _twice(split)]
    if damage:
        more = f" (and {len(damage) - 10} more)" if len(damage) > 10 else ""
        raise UsageError(
            f"damaged shards: {'; '.join(damage[:10])}{more}",
            where=index.root,
            remedy="copy the tars named here to that address again"
            if isinstance(index.root, str)
            else "delete the tars named here and run signllm shard again: the whole ones are kept",
        )
    return {"splits": {split.name: len(split) for split in splits}, "decoded": decode, "damaged": 0}


def _shards_of(split: Split) -> Iterator[Split]:
    """Yield each shard as a split of its own: what one process needs to know."""
    for number, tar in enumerate(split.tars):
        samples = tuple(replace(sample, shard=0) for sample in split.samples if sample.shard == number)
        yield Split(name=split.name, tars=(tar,), shard_sizes=(len(samples),), samples=samples)


def _shard_damage(shard: Split, entry: dict[str, Any], decode: bool) -> list[str]:
    try:
        with _on_disk(shard.tars[0]) as tar:
            here = replace(shard, tars=(tar,))
            damage = list(_tar_damage(tar, entry))
            for number in range(len(here)):
                damage += _sample_damage(here, number, decode=decode)
            return damage
    except FileNotFoundError:
        return [f"{entry['tar']}: missing"]


@contextmanager
def _on_disk(tar: Path | str) -> Iterator[Path]:
    """Give out a shard as a file: itself, or a copy of what lies at its address while it is checked."""
    if isinstance(tar, Path):
        yield tar
        return
    with TemporaryDirectory(prefix="signllm-verify-") as folder:
        copy = Path(folder) / tar.rsplit("/", 1)[-1]
        fetch(tar, copy)
        yield copy


def _twice(split: Split) -> Iterator[str]:
    for key, count in Counter(sample.key for sample in split.samples).items():
        if count > 1:
            yield f"{split.name}: {key} stands {count} times"


def _tar_damage(tar: Path, entry: dict[str, Any]) -> Iterator[str]:
    if file_sha256(tar) != entry["sha256"]:
        yield f"{tar.name}: sha256 differs from the one written"
    try:
        keys = tar_members(tar)
    except (tarfile.TarError, OSError) as error:
        yield f"{tar.name}: {error}"
    else:
        if len(keys) != entry["samples"]:
            yield f"{tar.name}: {len(keys)} samples, {entry['samples']} in the index"


def _sample_damage(split: Split, number: int, *, decode: bool) -> Iterator[str]:
    sample = split.samples[number]
    where = f"{split.tars[sample.shard].name}: {sample.key}"
    try:
        members = split.read(number)
        described = json.loads(members["json"])
        if members["txt"].decode() != sample.text or not sample.text or described["id"] != sample.id:
            yield f"{where}: text or json differs from the index"
        if decode:
            frames = len(stored_frames(members))
            if frames != sample.frames:
                yield f"{where}: {frames} frames, {sample.frames} in the index"
    except (VideoError, UsageError) as error:
        yield f"{where}: {error.what}"
    except (OSError, ValueError, KeyError) as error:
        yield f"{where}: {type(error).__name__} {error}"


def shards_preview(out: Path | str, png: Path | str, *, samples: int = 12) -> Path:
    """Write a contact sheet: for some samples of every split six frames over the clip, with name and text.

    Args:
        out: the folder of shards, or its address.
        png: the picture to write.
        samples: rows, spread evenly over the splits.

    Raises:
        UsageError: no finished shards, or a video that does not decode.
    """
    from PIL import Image

    index = ShardIndex(out)
    splits = [index.split(name) for name in index.splits]
    each = max(1, samples // len(splits))
    rows = [
        _row(split, number)
        for split in splits
        for number in sorted(
            {place * len(split) // min(each, len(split)) for place in range(min(each, len(split)))}
        )
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(png, format="PNG")
    return Path(png)


def _row(split: Split, number: int) -> Image.Image:
    import numpy as np
    from PIL import Image, ImageDraw

    sample = split.samples[number]
    frames_THWC = stored_frames(split.read(number), size=_TILE)
    shown = frames_THWC[np.linspace(0, len(frames_THWC) - 1, _SHOWN_FRAMES).round().astype(int)]
    row = Image.new("RGB", (_TILE * _SHOWN_FRAMES, _TILE + 32), "white")
    for place, frame_HWC in enumerate(shown):
        row.paste(Image.fromarray(np.ascontiguousarray(frame_HWC)), (place * _TILE, 32))
    ImageDraw.Draw(row).multiline_text((4, 2), _caption(split, sample), fill="black")
    return row


def _caption(split: Split, sample: ShardSample) -> str:
    described = f"{split.name}/{sample.id}  {sample.frames} frames at {sample.fps:g} fps  {sample.signer}"
    return f"{described[:100]}\n{sample.text[:105]}"
