"""Looking at finished shards: what is in them, and whether it is as it was written."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from signllm.data.index import ShardIndex, Split
from signllm.data.parallel_encoding import map_in_processes
from signllm.data.remote import download, join_address
from signllm.data.sample_table import SampleTable
from signllm.data.shard_json import parse_json
from signllm.data.stored_frames import decode_stored_frames
from signllm.data.tar import hash_file, list_tar_members, read_sidecar
from signllm.data.unspaced_text import is_unspaced
from signllm.data.video import VideoError
from signllm.errors import UsageError
from signllm.progress import progress

_RATES = 8
"""Different frame rates that are listed as they are."""
_PIECE = 8
"""Samples that a process checks at a time: few, so that progress is smooth in shards of 512 MB too."""


def summarize_shards(out: Path | str) -> dict[str, Any]:
    """Return what is in the shards, and how they were made.

    Of every split samples, hours, frames, signers, languages and text statistics; of every two splits what
    they share: the clips of the later one whose text stands in the earlier one too, and the signers of both.
    """
    index = ShardIndex(out)
    splits = [index.split(name) for name in index.splits]
    shared = {
        f"{one.name}-{other.name}": _count_overlap(one, other) for one, other in combinations(splits, 2)
    }
    made = {name: index.manifest[name] for name in ("made", "clips_in_source", "left_out")}
    return {
        "root": str(index.root),
        "splits": {split.name: _summarize_split(split) for split in splits},
        "overlap": shared,
        **made,
        "warnings": [*index.manifest.get("warnings", []), *_warn_of_different_rates(splits)],
    }


def _summarize_split(split: Split) -> dict[str, Any]:
    texts, frames = [sample.text for sample in split.samples], split.samples.frames
    return {
        "samples": len(split),
        "shards": len(split.tars),
        "hours": round(float((frames / split.samples.fps).sum()) / 3600, 4),
        "frames": int(frames.sum()),
        "shortest_frames": int(frames.min()),
        "longest_frames": int(frames.max()),
        "frame_rates": _count_frame_rates(split),
        "signers": {name or "unknown": count for name, count in split.samples.signers().items()},
        "languages": dict(split.samples.languages()),
        "distinct_texts": len(set(texts)),
        **_summarize_texts(texts),
    }


def _count_frame_rates(split: Split) -> dict[str, int]:
    """Return how many videos have each rate, rounded to whole frames per second if there are many rates."""
    rates = split.samples.fps
    rounded = next(
        r for digits in (2, 1, 0) if len(np.unique(r := rates.round(digits))) <= _RATES or digits == 0
    )
    values, counts = np.unique(rounded, return_counts=True)
    return {f"{value:g}": count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def _warn_of_different_rates(splits: Sequence[Split]) -> list[str]:
    return [
        f"{split.name}: videos of {least:g} to {most:g} frames per second; a run reads all at one rate, by "
        "default the middle one of its training videos (--data.fps)"
        for split in splits
        if (most := float(split.samples.fps.max())) > 1.01 * (least := float(split.samples.fps.min()))
    ]


def _summarize_texts(texts: Sequence[str]) -> dict[str, Any]:
    """Count words, or characters where most texts have no spaces between words (Chinese, Japanese, Thai)."""
    is_spaced = 2 * sum(map(is_unspaced, texts)) < len(texts)
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


def _count_overlap(one: Split, other: Split) -> dict[str, int]:
    texts = {sample.text for sample in one.samples}
    signers = [split.samples.signers().keys() - {""} for split in (one, other)]
    return {
        "texts": sum(sample.text in texts for sample in other.samples),
        "signers": len(signers[0] & signers[1]),
    }


def verify_shards(
    out: Path | str, *, decode: bool = True, workers: int = 1, show_progress: bool = False
) -> dict[str, Any]:
    """Check every byte: sha256 of each tar, members against the index, texts, each video decoded and counted.

    Args:
        out: the folder of shards or its address, from which each is fetched whole into a temporary folder.
        decode: decode every video; without, only bytes and structure are checked.
        workers: processes, each of which checks a few samples at a time.
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
    jobs = (
        (piece, entry, decode)
        for split in splits
        for piece, entry in _split_into_pieces(split, index.manifest["splits"][split.name]["shards"])
    )
    damage: list[str] = []
    with (
        progress(sum(map(len, splits)), "verifying", unit="clips", enabled=show_progress) as bar,
        closing(map_in_processes(_find_damage, jobs, workers)) as checked,
    ):
        for samples, found in checked:
            damage += found
            bar.advance(samples)
    damage += [said for split in splits for said in _find_duplicate_keys(split)]
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


def _split_into_pieces(
    split: Split, entries: Sequence[dict[str, Any]]
) -> Iterator[tuple[Split, dict[str, Any] | None]]:
    """Yield a few samples of a shard at a time as a split of their own; with the first, the shard's entry."""
    for number, entry in enumerate(entries):
        shard = split.select_shard(number)
        size = _PIECE if isinstance(shard.tars[0], Path) else len(shard)  # what is fetched is fetched once
        for start in range(0, max(1, len(shard)), max(1, size)):
            samples = SampleTable(shard.samples[start : start + size])
            piece = replace(shard, shard_sizes=(len(samples),), samples=samples)
            yield piece, None if start else entry


def _find_damage(piece: Split, entry: dict[str, Any] | None, decode: bool) -> tuple[int, list[str]]:
    """Return how many samples were looked at, and their damage; of their tar too if its entry is given."""
    try:
        with _local_copy(piece.tars[0]) as tar:
            here = replace(piece, tars=(tar,))
            damage = list(_find_tar_damage(tar, entry)) if entry else []
            for number in range(len(here)):
                damage += _find_sample_damage(here, number, decode=decode)
    except FileNotFoundError:
        damage = [f"{piece.tars[0]}: missing"]
    return len(piece), damage


@contextmanager
def _local_copy(tar: Path | str) -> Iterator[Path]:
    """Give out a shard as a file: itself, or a copy of what lies at its address while it is checked."""
    if isinstance(tar, Path):
        yield tar
        return
    with TemporaryDirectory(prefix="signllm-verify-") as folder:
        copy = Path(folder) / tar.rsplit("/", 1)[-1]
        for name in (copy.name, copy.with_suffix(".json").name):
            download(str(join_address(tar.rsplit("/", 1)[0], name)), copy.with_name(name))
        yield copy


def _find_duplicate_keys(split: Split) -> Iterator[str]:
    for key, count in Counter(sample.key for sample in split.samples).items():
        if count > 1:
            yield f"{split.name}: {key} stands {count} times"


def _find_tar_damage(tar: Path, entry: dict[str, Any]) -> Iterator[str]:
    if hash_file(tar) != entry["sha256"]:
        yield f"{tar.name}: sha256 differs from the one written"
    try:
        found = list_tar_members(tar)
    except (tarfile.TarError, OSError) as error:
        yield f"{tar.name}: {error}"
        return
    sidecar = read_sidecar(tar.with_suffix(".json"))
    if sidecar is None or len(found) != len(sidecar["samples"]) or len(found) != entry["samples"]:
        yield f"{tar.name}: {len(found)} samples, {entry['samples']} in the index"
    elif found != {sample["key"]: sample["members"] for sample in sidecar["samples"]}:
        yield f"{tar.name}: its members are not those of the index"


def _find_sample_damage(split: Split, number: int, *, decode: bool) -> Iterator[str]:
    sample = split.samples[number]
    where = f"{split.tars[sample.shard].name}: {sample.key}"
    try:
        members = split.read(number)
        described = parse_json(members["json"])
        told = isinstance(described, dict) and described.get("id") == sample.id
        if members["txt"].decode() != sample.text or not sample.text or not told:
            yield f"{where}: text or json differs from the index"
        if decode:
            frames = len(decode_stored_frames(members))
            if frames != sample.frames:
                yield f"{where}: {frames} frames, {sample.frames} in the index"
    except (VideoError, UsageError) as error:
        yield f"{where}: {error.what}"
    except (OSError, ValueError) as error:
        yield f"{where}: {type(error).__name__} {error}"
