"""Datasets → WebDataset tars with an index each: resumable, atomic, the same bytes every time (design 4.3).

Clips are encoded one by one, in worker processes if asked, and written in the dataset's order; a shard is
closed when it is full. Beside each tar lies a json with the byte offsets of every member and the tar's
sha256, written last: its presence means that the shard is whole. A second run keeps shards whose inputs are
unchanged and goes on behind them, so a run killed at any moment is continued by the same command, with the
same result as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from signllm.atomic_files import NO_SPACE, describe_free_space
from signllm.data.annotations import read_annotations
from signllm.data.missing_files import check_some_exist
from signllm.data.parallel_encoding import encode_samples, fingerprint_input
from signllm.data.preview import preview_shards
from signllm.data.sample_encoding import EncodeConfig, EncodedSample
from signllm.data.shard_inspection import summarize_shards, verify_shards
from signllm.data.shard_json import SHARD_FORMAT, SHARD_VERSION
from signllm.data.signer_splits import split_by_signer
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample, is_safe_split, safe_key
from signllm.data.tar import (
    MANIFEST,
    ShardFile,
    lock_folder,
    make_manifest_entry,
    read_sidecar,
    remove_stale_shards,
    write_atomically,
)
from signllm.errors import UsageError
from signllm.progress import Bar, progress
from signllm.storage import DEFAULT_TIMEOUT_S, storage_wait_policy

__all__ = [
    "ShardConfig",
    "shard",
    "summarize_shards",
    "preview_shards",
    "verify_shards",
    "format_warnings",
    "write_shards",
]

Encode = Callable[[Sequence[SourceSample], EncodeConfig, int], Generator[EncodedSample | LeftOutSample]]
"""Clips, how, in how many processes → a sample or a reason for each, in order."""
_TOLD = 10
"""Clips left out that are told by name; all are in the manifest."""


@dataclass(frozen=True, kw_only=True)
class ShardConfig(EncodeConfig):
    """How a dataset becomes shards.

    Args:
        shard_size_mb: a shard is closed when its samples reach this many megabytes.
        max_bad: how many clips may be left out before the run fails: "1%" of all, or a number.
        split_by: ``dataset`` keeps its splits; ``signer`` makes train, dev and test that share no signer.
        proportions: share of the clips in train, dev and test, as near as whole signers allow.
        workers: processes that encode; 1 encodes in this process. The result does not depend on it.
        show_progress: draw a progress bar on standard error.
        storage_timeout_s: seconds that a read waits for storage that is away, before sharding ends; 0 does
            not wait. No clip is left out for it.
    """

    shard_size_mb: float = 512
    max_bad: str = "1%"
    split_by: Literal["dataset", "signer"] = "dataset"
    proportions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    workers: int = 1
    show_progress: bool = True
    storage_timeout_s: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` for a value that cannot work."""
        super().__post_init__()
        if not 0 < self.shard_size_mb <= 16_384:
            raise UsageError(
                f"shard_size_mb = {self.shard_size_mb}", remedy="above 0, at most 16384; 256 to 1024 is usual"
            )
        if not self.storage_timeout_s >= 0:
            raise UsageError(f"storage_timeout_s = {self.storage_timeout_s}", remedy="seconds, at least 0")
        if self.workers < 1:
            raise UsageError(f"workers = {self.workers}", remedy="at least 1")
        if self.split_by not in ("dataset", "signer"):
            raise UsageError(f"split_by = {self.split_by!r}", remedy="dataset or signer")
        if min(self.proportions) < 0 or not 0 < sum(self.proportions) < 1e6:
            raise UsageError(f"proportions = {self.proportions}", remedy="three shares such as 0.8 0.1 0.1")
        self.bad_allowed(100)

    def bad_allowed(self, clips: int) -> int:
        """Return how many of ``clips`` may be left out."""
        text = str(self.max_bad).strip()
        is_share = text.endswith("%")
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if not 0 <= number <= (100 if is_share else 1e9):
            raise UsageError(
                f"max_bad = {self.max_bad!r}", remedy='a share such as "1%" or a number such as 5'
            )
        return int(number / 100 * clips if is_share else number)


def shard(format: str, src: Path | str, out: Path | str, config: ShardConfig | None = None) -> dict[str, Any]:
    """Read the dataset ``src`` laid out as ``format`` and write its shards to ``out``; return the manifest.

    Raises:
        UsageError: as :func:`~signllm.data.annotations.read_annotations` and :func:`write_shards`.
    """
    return write_shards(read_annotations(format, src), out, config or ShardConfig())


def format_warnings(manifest: Mapping[str, Any]) -> list[str]:
    """Return what the person who sharded should hear: the manifest's warnings, and the first left out."""
    left_out = manifest["left_out"]
    lines = [f"warning: {line}" for line in manifest["warnings"]]
    if left_out:
        lines.append(f"left out: {len(left_out)} of {manifest['clips_in_source']} clips, in {MANIFEST}:")
        lines += [f"  {entry['split']}/{entry['id']}: {entry['reason']}" for entry in left_out[:_TOLD]]
    return lines


def write_shards(
    annotations: Annotations,
    out: Path | str,
    config: ShardConfig | None = None,
    *,
    encode: Encode = encode_samples,
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """Write all clips as shards into the folder ``out`` and return the manifest (``manifest.json``).

    Finished shards with the same inputs are kept. While anything is missing there is no manifest, so nothing
    reads half a dataset. ``encode`` makes the samples; a merge of slices has them already. Only a slice
    ``may_be_empty``: the budget decides about its clips, and others may have some.

    Raises:
        UsageError: nothing to write, more clips left out than ``max_bad``, another run writing there, a full
            disk.
        StorageError: the storage of a video stayed away; finished shards are kept.
    """
    out, config = Path(out), config or ShardConfig()
    annotations = prepare_annotations(annotations, config, may_be_empty=may_be_empty)
    with _explain_write_errors(out, config.shard_size_mb), storage_wait_policy(config.storage_timeout_s):
        out.mkdir(parents=True, exist_ok=True)
        with lock_folder(out):
            return _ShardWriter(annotations, out, config, encode).write(may_be_empty=may_be_empty)


def prepare_annotations(
    annotations: Annotations, config: ShardConfig, *, may_be_empty: bool = False
) -> Annotations:
    """Return the annotations in the splits that are wanted, or say why they cannot be written.

    Raises:
        UsageError: a split that cannot be a file name, no splits by signer, clips to cut and to copy, or not
            one video that exists.
    """
    if config.split_by == "signer":
        annotations = split_by_signer(annotations, config.proportions)
    _check_splits(annotations)
    _check_time_spans(annotations, config)
    if not may_be_empty:
        check_some_exist(annotations.samples)
    return annotations


def drop_duplicates(clips: Sequence[SourceSample]) -> tuple[list[SourceSample], list[LeftOutSample]]:
    """Return the clips whose id is the first in its split, and the others as left out."""
    seen: set[tuple[str, str]] = set()
    kept, left_out = [], []
    for clip in clips:
        if (clip.split, safe_key(clip.id)) in seen:
            left_out.append(
                LeftOutSample(id=clip.id, split=clip.split, reason="the id stands twice in this split")
            )
        else:
            seen.add((clip.split, safe_key(clip.id)))
            kept.append(clip)
    return kept, left_out


def recorded_options(config: ShardConfig) -> dict[str, Any]:
    """Return what the manifest notes as ``made``: the options that decide the shards."""
    return _byte_options(config) | {"split_by": config.split_by}


def _byte_options(config: ShardConfig) -> dict[str, Any]:
    """Return the options that decide a shard's bytes; splits are part of every clip already."""
    without = ("max_bad", "workers", "show_progress", "storage_timeout_s", "split_by", "proportions")
    return {name: value for name, value in asdict(config).items() if name not in without}


def _check_splits(annotations: Annotations) -> None:
    for split in annotations.splits:
        if not is_safe_split(split):
            raise UsageError(
                f"split {split!r} cannot be part of a file name",
                remedy="letters, digits and _ only, e.g. train, dev, test",
            )


def _check_time_spans(annotations: Annotations, config: ShardConfig) -> None:
    cut = next(
        (clip for clip in annotations.samples if clip.time_span and not os.path.isdir(clip.video)), None
    )
    if cut and config.encode == "copy":
        raise UsageError(
            f"encode = copy keeps whole files, but {cut.id} is a part of {cut.video.name}",
            remedy="--encode h264 (small) or --encode frames (lossless) cuts clips out of recordings",
        )


@contextmanager
def _explain_write_errors(out: Path, shard_size_mb: float) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        is_full = error.errno in NO_SPACE
        mend = "make room, or give another OUT" if is_full else "give as OUT a folder you may write to"
        room = f": {describe_free_space(out)}, a shard takes about {shard_size_mb:g} MB" if is_full else ""
        raise UsageError(
            f"the shards cannot be written: {error.strerror or error}{room}",
            where=error.filename or out,
            remedy=f"{mend}; then run the same command again: finished shards are kept",
        ) from error


class _ShardWriter:
    """One run of :func:`write_shards`: what was left out so far, and the budget for it."""

    def __init__(self, annotations: Annotations, out: Path, config: ShardConfig, encode: Encode) -> None:
        self.annotations, self.out, self.config, self.encode = annotations, out, config, encode
        self.total = len(annotations.samples) + len(annotations.left_out)
        self.allowed = config.bad_allowed(self.total)
        self.left_out: list[LeftOutSample] = []

    def write(self, *, may_be_empty: bool) -> dict[str, Any]:
        """Write every split, remove what is stale, write the manifest last."""
        self._leave_out(self.annotations.left_out)
        clips, twice = drop_duplicates(self.annotations.samples)
        self._leave_out(twice)
        splits: dict[str, list[dict[str, Any]]] = {}
        with progress(
            len(clips), f"sharding to {self.out}", unit="clips", enabled=self.config.show_progress
        ) as bar:
            for split in dict.fromkeys(clip.split for clip in clips):
                shards = self._write_split(split, [clip for clip in clips if clip.split == split], bar)
                splits |= {split: shards} if shards else {}
        if not splits and not may_be_empty:
            raise UsageError(
                "no clip is left to write",
                where="; ".join(self._reasons()) or None,
                remedy="check the source",
            )
        remove_stale_shards(self.out, {shard["index"] for shards in splits.values() for shard in shards})
        manifest = self._manifest(splits)
        write_atomically(self.out / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode())
        return manifest

    def _leave_out(self, entries: Sequence[LeftOutSample]) -> None:
        self.left_out.extend(entries)
        if len(self.left_out) > self.allowed:
            raise UsageError(
                f"{len(self.left_out)} of {self.total} clips cannot be used, allowed {self.allowed} "
                f"(max_bad = {self.config.max_bad})",
                where="; ".join(self._reasons()),
                remedy="mend or drop these clips, or allow more with max_bad",
            )

    def _reasons(self) -> list[str]:
        shown = [f"{entry.split}/{entry.id}: {entry.reason}" for entry in self.left_out[:5]]
        return shown + ([f"and {len(self.left_out) - 5} more"] if len(self.left_out) > 5 else [])

    def _write_split(self, split: str, clips: list[SourceSample], bar: Bar) -> list[dict[str, Any]]:
        """Keep the finished shards of a split, encode what lies behind them; return the shards' entries."""
        prints = [fingerprint_input(clip) for clip in clips]
        shards, done = self._finished(split, prints)
        bar.advance(done)
        with closing(self.encode(clips[done:], self.config, self.config.workers)) as samples:
            while done < len(clips):
                with ShardFile(self.out, split, len(shards)) as file:
                    taken, left_out = self._fill(file, samples, bar)
                    inputs = self._inputs(prints[done : done + taken])
                    if file.samples:
                        (self.out / MANIFEST).unlink(missing_ok=True)  # from here on the folder is in between
                    entry = file.close(inputs=inputs, source_count=taken, left_out=left_out)
                done += taken
                shards += [entry] if entry else []
        return shards

    def _fill(
        self, file: ShardFile, samples: Iterator[EncodedSample | LeftOutSample], bar: Bar
    ) -> tuple[int, list[LeftOutSample]]:
        """Write samples until the shard is full; return how many clips were taken and which left out."""
        taken, left_out = 0, []
        for sample in samples:
            taken += 1
            bar.advance()
            if isinstance(sample, EncodedSample):
                file.write(sample)
            else:
                left_out.append(sample)
                self._leave_out([sample])
            if file.size_bytes >= self.config.shard_size_mb * 1e6:
                break
        return taken, left_out

    def _finished(self, split: str, prints: list[str]) -> tuple[list[dict[str, Any]], int]:
        """Return the entries of finished shards that the first clips still make, and how many they cover."""
        shards: list[dict[str, Any]] = []
        done = 0
        while done < len(prints):
            sidecar = read_sidecar(self.out / f"{split}-{len(shards):06d}.json")
            if not sidecar or sidecar["inputs"] != self._inputs(prints[done : done + sidecar["clips"]]):
                break
            self._leave_out([LeftOutSample(**entry) for entry in sidecar["left_out"]])
            done += sidecar["clips"]
            shards.append(make_manifest_entry(sidecar))
        return shards, done

    def _inputs(self, prints: list[str]) -> str:
        """Return the fingerprint of a shard: its clips, and the options that decide its bytes."""
        whole = json.dumps([SHARD_VERSION, _byte_options(self.config), prints], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def _manifest(self, splits: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        totals = ("samples", "frames", "seconds", "size_bytes")
        return {
            "format": SHARD_FORMAT,
            "version": SHARD_VERSION,
            "splits": {
                split: {name: round(sum(shard[name] for shard in shards), 3) for name in totals}
                | {"shards": shards}
                for split, shards in splits.items()
            },
            "made": recorded_options(self.config),
            "clips_in_source": self.total,
            "left_out": [asdict(entry) for entry in self.left_out],
            "warnings": self._warnings(splits),
        }

    def _warnings(self, splits: dict[str, list[dict[str, Any]]]) -> list[str]:
        """Compare with the official counts; count the videos whose light had to be compressed.

        Resampling in time changes the number of frames, which is then not compared.
        """
        entries = [entry for shards in splits.values() for entry in shards]
        tone_mapped = sum(entry.get("tone_mapped", 0) for entry in entries)
        light = [
            f"{tone_mapped} of {sum(entry['samples'] for entry in entries)} videos have a high dynamic range "
            "(HLG or PQ) and are shown as an ordinary screen would show them"
        ] * bool(tone_mapped)
        return [*self.annotations.notices, *light] + [
            f"{split}: {found} {what} here, {official} in the official release"
            for split, counts in self.annotations.official.items()
            for what, official in counts.items()
            if what == "samples" or self.config.fps is None
            if (found := sum(shard[what] for shard in splits.get(split, ()))) != official
        ]
