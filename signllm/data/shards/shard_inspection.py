"""Statistics of finished shards, and the verification that they are as they were written."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from signllm.data.shards.index import ShardIndex, Split
from signllm.data.shards.parallel_encoding import map_in_processes
from signllm.data.shards.remote import download, join_address
from signllm.data.shards.sample_table import SampleTable
from signllm.data.shards.tar import hash_file, list_tar_members, read_sidecar
from signllm.data.shards.unspaced_text import is_unspaced
from signllm.data.text_files import parse_json
from signllm.data.video.decoding import VideoError
from signllm.data.video.stored_frames import decode_stored_frames
from signllm.errors import UsageError
from signllm.progress import progress

_MOST_RATES = 8
"""Largest number of different frame rates that are listed without rounding."""
_MOST_NAMES = 3
"""Largest number of languages or signers that are listed by name; more are counted."""
_PIECE_SAMPLES = 8
"""Samples that a process checks at a time; few, so that the progress bar moves smoothly in large shards."""


def summarize_shards(out: Path | str) -> dict[str, Any]:
    """Return statistics of the shards, and how they were made.

    For every split these are samples, hours, frames, signers, languages and text statistics. For every two
    splits they are the number of samples of the second split whose text also occurs in the first, and the
    number of signers in both.
    """
    index = ShardIndex(out)
    splits = [index.split(name) for name in index.splits]
    shared = {
        f"{first.name}-{second.name}": _count_overlap(first, second)
        for first, second in combinations(splits, 2)
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
    """Return the number of videos of each frame rate; many different rates are rounded."""
    rates = split.samples.fps
    rounded = next(
        r for digits in (2, 1, 0) if len(np.unique(r := rates.round(digits))) <= _MOST_RATES or digits == 0
    )
    values, counts = np.unique(rounded, return_counts=True)
    return {f"{value:g}": count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def _warn_of_different_rates(splits: Sequence[Split]) -> list[str]:
    """Return a warning for each split whose videos have different frame rates."""
    return [
        f"{split.name}: the videos have {least:g} to {most:g} frames per second; a run reads all "
        "of them at one rate, by default the median of its training videos (--data.fps)"
        for split in splits
        if (most := float(split.samples.fps.max())) > 1.01 * (least := float(split.samples.fps.min()))
    ]


def _summarize_texts(texts: Sequence[str]) -> dict[str, Any]:
    """Return counts of words, or of characters if most texts have no spaces between words (as Chinese)."""
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


def _count_overlap(first: Split, second: Split) -> dict[str, int]:
    """Return the number of samples of ``second`` with a text of ``first``, and of signers in both."""
    texts = {sample.text for sample in first.samples}
    signers = [split.samples.signers().keys() - {""} for split in (first, second)]
    return {
        "texts": sum(sample.text in texts for sample in second.samples),
        "signers": len(signers[0] & signers[1]),
    }


def format_info_table(info: Mapping[str, Any]) -> str:
    """Return the result of :func:`summarize_shards` as lines of text: a column per split, then notes."""
    splits = info["splits"]
    rows = [("", [*splits])]
    for name in dict.fromkeys(name for split in splits.values() for name in split):
        cell = _format_rates if name == "frame_rates" else _format_cell
        rows.append((name.replace("_", " "), [cell(split.get(name, "")) for split in splits.values()]))
    width = max(len(name) for name, _ in rows)
    cells = [max(len(row[place]) for _, row in rows) for place in range(len(splits))]
    lines = [
        "  ".join([f"{name:<{width}}", *(f"{cell:>{size}}" for cell, size in zip(row, cells, strict=True))])
        for name, row in rows
    ]
    return "\n".join([str(info["root"]), *lines, *_format_notes(info)])


def _format_cell(value: Any) -> str:
    """Return a value as the text of a cell; long lists of names are counted."""
    if isinstance(value, dict):
        known = [name for name in value if name != "unknown"]
        return ", ".join(known) if 0 < len(known) <= _MOST_NAMES else str(len(known) or "unknown")
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _format_rates(counts: Any) -> str:
    """Return the frame rates as text, with the number of videos of each if there are several."""
    if len(counts) > _MOST_NAMES:
        return f"{min(counts, key=float)} to {max(counts, key=float)}"
    return ", ".join(f"{rate} ({count:,})" if len(counts) > 1 else rate for rate, count in counts.items())


def _format_notes(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the table."""
    for pair, shared in info["overlap"].items():
        first, second = pair.split("-")
        yield (
            f"{shared['texts']} samples of {second} have a text of {first}; "
            f"{shared['signers']} signers are in both"
        )
    made = ", ".join(f"{name} {value}" for name, value in info["made"].items() if value is not None)
    yield f"made by: {made}"
    yield f"samples in the source: {info['clips_in_source']:,}, left out: {len(info['left_out']):,}"
    yield from (f"warning: {line}" for line in info["warnings"])


def verify_shards(
    out: Path | str, *, decode: bool = True, workers: int = 1, show_progress: bool = False
) -> dict[str, Any]:
    """Verify shards: the sha256 of each tar, its members against the index, all texts and all videos.

    Args:
        out: folder of the shards, or its address, from which each shard is downloaded to a temporary folder.
        decode: whether to decode every video and count its frames; False checks only bytes and structure.
        workers: number of processes, each of which checks a few samples at a time.
        show_progress: whether to draw a progress bar on standard error.

    Returns:
        The numbers of checked samples.

    Raises:
        UsageError: there is damage; the message lists up to ten cases.
    """
    if workers < 1:
        raise UsageError(f"workers = {workers} is too small", remedy="give at least 1")
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
        for samples, problems in checked:
            damage += problems
            bar.advance(samples)
    damage += [problem for split in splits for problem in _find_duplicate_keys(split)]
    if damage:
        more = f" (and {len(damage) - 10} more)" if len(damage) > 10 else ""
        raise UsageError(
            f"the shards are damaged: {'; '.join(damage[:10])}{more}",
            where=index.root,
            remedy="copy the tars named here to that address again"
            if isinstance(index.root, str)
            else "delete the tars named here and run signllm shard again, which keeps the complete ones",
        )
    return {"splits": {split.name: len(split) for split in splits}, "decoded": decode, "damaged": 0}


def _split_into_pieces(
    split: Split, entries: Sequence[dict[str, Any]]
) -> Iterator[tuple[Split, dict[str, Any] | None]]:
    """Yield a few samples of a shard at a time as a split, the first with the entry of the shard."""
    for number, entry in enumerate(entries):
        shard = split.select_shard(number)
        size = (
            _PIECE_SAMPLES if isinstance(shard.tars[0], Path) else len(shard)
        )  # a shard is downloaded only once
        for start in range(0, max(1, len(shard)), max(1, size)):
            samples = SampleTable(shard.samples[start : start + size])
            piece = replace(shard, shard_sizes=(len(samples),), samples=samples)
            yield piece, None if start else entry


def _find_damage(piece: Split, entry: dict[str, Any] | None, decode: bool) -> tuple[int, list[str]]:
    """Return the number of checked samples and their damage, with that of the tar if ``entry`` is given."""
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
    """Yield the path of a shard: its own, or that of a temporary copy of a shard at an address."""
    if isinstance(tar, Path):
        yield tar
        return
    with TemporaryDirectory(prefix="signllm-verify-") as folder:
        copy = Path(folder) / tar.rsplit("/", 1)[-1]
        for name in (copy.name, copy.with_suffix(".json").name):
            download(str(join_address(tar.rsplit("/", 1)[0], name)), copy.with_name(name))
        yield copy


def _find_duplicate_keys(split: Split) -> Iterator[str]:
    """Yield the keys that occur several times in a split."""
    for key, count in Counter(sample.key for sample in split.samples).items():
        if count > 1:
            yield f"{split.name}: {key} occurs {count} times"


def _find_tar_damage(tar: Path, entry: dict[str, Any]) -> Iterator[str]:
    """Yield the differences between a tar, its index and its entry in the manifest."""
    if hash_file(tar) != entry["sha256"]:
        yield f"{tar.name}: the sha256 differs from that of the manifest"
    try:
        members = list_tar_members(tar)
    except (tarfile.TarError, OSError) as error:
        yield f"{tar.name}: {error}"
        return
    sidecar = read_sidecar(tar.with_suffix(".json"))
    if sidecar is None or len(members) != len(sidecar["samples"]) or len(members) != entry["samples"]:
        yield f"{tar.name}: {len(members)} samples, {entry['samples']} in the index"
    elif members != {sample["key"]: sample["members"] for sample in sidecar["samples"]}:
        yield f"{tar.name}: its members are not those of the index"


def _find_sample_damage(split: Split, number: int, *, decode: bool) -> Iterator[str]:
    """Yield the damage of one sample: of its text, its JSON and, if decoded, its video."""
    sample = split.samples[number]
    where = f"{split.tars[sample.shard].name}: {sample.key}"
    try:
        members = split.read(number)
        described = parse_json(members["json"])
        has_id = isinstance(described, dict) and described.get("id") == sample.id
        if members["txt"].decode() != sample.text or not sample.text or not has_id:
            yield f"{where}: text or json differs from the index"
        if decode:
            frames = len(decode_stored_frames(members))
            if frames != sample.frames:
                yield f"{where}: {frames} frames, {sample.frames} in the index"
    except (VideoError, UsageError) as error:
        yield f"{where}: {error.what}"
    except (OSError, ValueError) as error:
        yield f"{where}: {type(error).__name__} {error}"
