"""Writing a dataset as WebDataset tars, each with an index: resumable, atomic, and reproducible byte by byte.

Samples are encoded one by one, in worker processes if requested, and written in the order of the dataset; a
shard is closed when it is full. Next to each tar there is a JSON file with the byte offsets of all members
and the sha256 of the tar. It is written last, so its presence means that the shard is complete. A second run
keeps shards whose inputs are unchanged and continues after them. A run that was killed at any time is
therefore continued by the same command, with the same result as an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from signllm.atomic_files import NO_SPACE, atomic_write, describe_free_space
from signllm.data.annotations import read_annotations
from signllm.data.missing_files import check_some_exist
from signllm.data.shards.parallel_encoding import encode_samples, fingerprint_input
from signllm.data.shards.preview import preview_shards
from signllm.data.shards.sample_encoding import EncodeConfig, EncodedSample
from signllm.data.shards.shard_config import ShardConfig
from signllm.data.shards.shard_inspection import summarize_shards, verify_shards
from signllm.data.shards.shard_json import SHARD_FORMAT, SHARD_VERSION
from signllm.data.shards.signer_splits import split_by_signer
from signllm.data.shards.tar import (
    MANIFEST,
    ShardFile,
    lock_folder,
    make_manifest_entry,
    read_sidecar,
    remove_stale_shards,
)
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample, is_safe_split, safe_key
from signllm.errors import UsageError
from signllm.progress import Bar, progress
from signllm.storage import storage_wait_policy

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
"""Function that encodes samples with a configuration in a number of processes; it yields results in order."""
_LISTED = 10
"""Number of left out samples that are listed by name; the manifest contains all of them."""


def shard(format: str, src: Path | str, out: Path | str, config: ShardConfig | None = None) -> dict[str, Any]:
    """Read a dataset and write its shards; return the manifest.

    Args:
        format: name of the dataset's format.
        src: file or folder of the dataset.
        out: folder for the shards.
        config: how the shards are made.

    Raises:
        UsageError: as :func:`~signllm.data.annotations.read_annotations` and :func:`write_shards`.
    """
    return write_shards(read_annotations(format, src), out, config or ShardConfig())


def format_warnings(manifest: Mapping[str, Any]) -> list[str]:
    """Return the warnings of a manifest and the first samples that were left out, as lines for the user."""
    left_out = manifest["left_out"]
    lines = [f"warning: {line}" for line in manifest["warnings"]]
    if left_out:
        lines.append(
            f"left out: {len(left_out)} of {manifest['clips_in_source']} samples; {MANIFEST} lists them all:"
        )
        lines += [f"  {entry['split']}/{entry['id']}: {entry['reason']}" for entry in left_out[:_LISTED]]
    return lines


def write_shards(
    annotations: Annotations,
    out: Path | str,
    config: ShardConfig | None = None,
    *,
    encode: Encode = encode_samples,
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """Write all samples as shards and return the manifest (``manifest.json``).

    Finished shards with the same inputs are kept. The manifest exists only while no shard is missing, so that
    nothing reads an incomplete dataset.

    Args:
        annotations: annotations of the dataset.
        out: folder for the shards.
        config: how the shards are made.
        encode: function that encodes the samples; the merge of slices passes one that reads encoded samples.
        may_be_empty: whether no sample may be an empty result instead of an error, as for a slice.

    Raises:
        UsageError: there is nothing to write, more samples are left out than ``max_bad`` allows, another
            process writes into the folder, or the disk is full.
        StorageError: the storage of a video stayed unavailable; finished shards are kept.
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
    """Return the annotations with the configured splits, after checking that they can be written.

    Raises:
        UsageError: the name of a split cannot be part of a file name, splits by signer are impossible,
            ``encode copy`` is given for parts of recordings, or no video exists.
    """
    if config.split_by == "signer":
        annotations = split_by_signer(annotations, config.proportions)
    _check_splits(annotations)
    _check_time_spans(annotations, config)
    if not may_be_empty:
        check_some_exist(annotations.samples)
    return annotations


def drop_duplicates(samples: Sequence[SourceSample]) -> tuple[list[SourceSample], list[LeftOutSample]]:
    """Return the samples without repeated ids in a split, and the repetitions as left out samples."""
    seen: set[tuple[str, str]] = set()
    kept, left_out = [], []
    for sample in samples:
        if (sample.split, safe_key(sample.id)) in seen:
            left_out.append(
                LeftOutSample(id=sample.id, split=sample.split, reason="the id occurs twice in this split")
            )
        else:
            seen.add((sample.split, safe_key(sample.id)))
            kept.append(sample)
    return kept, left_out


def recorded_options(config: ShardConfig) -> dict[str, Any]:
    """Return the options that determine the shards, which the manifest records as ``made``."""
    return _byte_options(config) | {"split_by": config.split_by}


def _byte_options(config: ShardConfig) -> dict[str, Any]:
    """Return the options that determine the bytes of a shard; the split is a property of every sample."""
    omitted = ("max_bad", "workers", "show_progress", "storage_timeout_s", "split_by", "proportions")
    return {name: value for name, value in asdict(config).items() if name not in omitted}


def _check_splits(annotations: Annotations) -> None:
    """Raise :class:`UsageError` if the name of a split cannot be part of a file name."""
    for split in annotations.splits:
        if not is_safe_split(split):
            raise UsageError(
                f"the split {split!r} cannot be part of a file name",
                remedy="use only letters, digits and _, for example train, dev, test",
            )


def _check_time_spans(annotations: Annotations, config: ShardConfig) -> None:
    """Raise :class:`UsageError` if a sample is a part of a file and files must be copied."""
    cut = next(
        (sample for sample in annotations.samples if sample.time_span and not os.path.isdir(sample.video)),
        None,
    )
    if cut and config.encode == "copy":
        raise UsageError(
            f"encode = copy keeps whole files, but {cut.id} is a part of {cut.video.name}",
            remedy="use --encode h264 (small) or --encode frames (lossless), to cut samples out",
        )


@contextmanager
def _explain_write_errors(out: Path, shard_size_mb: float) -> Iterator[None]:
    """Turn errors of the file system into usage errors with a remedy."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in NO_SPACE
        action = (
            "free some space, or give another OUT" if is_full else "give as OUT a folder you may write to"
        )
        space = f": {describe_free_space(out)}, a shard takes about {shard_size_mb:g} MB" if is_full else ""
        raise UsageError(
            f"the shards cannot be written: {error.strerror or error}{space}",
            where=error.filename or out,
            remedy=f"{action}; then run the same command again, which keeps finished shards",
        ) from error


class _ShardWriter:
    """One run of :func:`write_shards`; it counts the samples that are left out against their limit."""

    def __init__(self, annotations: Annotations, out: Path, config: ShardConfig, encode: Encode) -> None:
        self.annotations, self.out, self.config, self.encode = annotations, out, config, encode
        self.total = len(annotations.samples) + len(annotations.left_out)
        self.allowed = config.bad_allowed(self.total)
        self.left_out: list[LeftOutSample] = []

    def write(self, *, may_be_empty: bool) -> dict[str, Any]:
        """Write every split, remove stale shards, and write the manifest last; return the manifest."""
        self._leave_out(self.annotations.left_out)
        samples, duplicates = drop_duplicates(self.annotations.samples)
        self._leave_out(duplicates)
        splits: dict[str, list[dict[str, Any]]] = {}
        with progress(
            len(samples), f"sharding to {self.out}", unit="samples", enabled=self.config.show_progress
        ) as bar:
            for split in dict.fromkeys(sample.split for sample in samples):
                shards = self._write_split(split, [item for item in samples if item.split == split], bar)
                splits |= {split: shards} if shards else {}
        if not splits and not may_be_empty:
            raise UsageError(
                "there is no sample left to write",
                where="; ".join(self._list_reasons()) or None,
                remedy="check the source",
            )
        remove_stale_shards(self.out, {shard["index"] for shards in splits.values() for shard in shards})
        manifest = self._make_manifest(splits)
        atomic_write(self.out / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode())
        return manifest

    def _leave_out(self, entries: Sequence[LeftOutSample]) -> None:
        """Record samples that are left out, and check their limit."""
        self.left_out.extend(entries)
        if len(self.left_out) > self.allowed:
            raise UsageError(
                f"{len(self.left_out)} of {self.total} samples cannot be used, allowed {self.allowed} "
                f"(--max-bad {self.config.max_bad})",
                where="; ".join(self._list_reasons()),
                remedy="repair or remove these samples, or allow more with --max-bad",
            )

    def _list_reasons(self) -> list[str]:
        """Return the reasons of the first samples that were left out."""
        shown = [f"{entry.split}/{entry.id}: {entry.reason}" for entry in self.left_out[:5]]
        return shown + ([f"and {len(self.left_out) - 5} more"] if len(self.left_out) > 5 else [])

    def _write_split(self, split: str, sources: list[SourceSample], bar: Bar) -> list[dict[str, Any]]:
        """Keep the finished shards of a split and write the others; return the manifest entries of all."""
        prints = [fingerprint_input(source) for source in sources]
        shards, done = self._find_finished(split, prints)
        bar.advance(done)
        with closing(self.encode(sources[done:], self.config, self.config.workers)) as samples:
            while done < len(sources):
                with ShardFile(self.out, split, len(shards)) as file:
                    taken, left_out = self._fill_shard(file, samples, bar)
                    inputs = self._fingerprint_shard(prints[done : done + taken])
                    if file.samples:
                        (self.out / MANIFEST).unlink(missing_ok=True)  # it does not describe the new shard
                    entry = file.close(inputs=inputs, source_count=taken, left_out=left_out)
                done += taken
                shards += [entry] if entry else []
        return shards

    def _fill_shard(
        self, file: ShardFile, samples: Iterator[EncodedSample | LeftOutSample], bar: Bar
    ) -> tuple[int, list[LeftOutSample]]:
        """Write samples until the shard is full; return the number of source samples, and those left out."""
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

    def _find_finished(self, split: str, prints: list[str]) -> tuple[list[dict[str, Any]], int]:
        """Return the entries of finished shards that are still valid, and their number of source samples.

        Args:
            split: name of the split.
            prints: fingerprints of the source samples of the split.
        """
        shards: list[dict[str, Any]] = []
        done = 0
        while done < len(prints):
            sidecar = read_sidecar(self.out / f"{split}-{len(shards):06d}.json")
            if not sidecar or sidecar["inputs"] != self._fingerprint_shard(
                prints[done : done + sidecar["clips"]]
            ):
                break
            self._leave_out([LeftOutSample(**entry) for entry in sidecar["left_out"]])
            done += sidecar["clips"]
            shards.append(make_manifest_entry(sidecar))
        return shards, done

    def _fingerprint_shard(self, prints: list[str]) -> str:
        """Return the fingerprint of a shard's source samples and of the options that determine its bytes."""
        content = json.dumps([SHARD_VERSION, _byte_options(self.config), prints], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _make_manifest(self, splits: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Return the manifest of the written shards."""
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
            "warnings": self._make_warnings(splits),
        }

    def _make_warnings(self, splits: dict[str, list[dict[str, Any]]]) -> list[str]:
        """Return the notices of the reader, and warnings of tone mapped videos and of unofficial counts.

        The number of frames is not compared after resampling in time, which changes it.
        """
        entries = [entry for shards in splits.values() for entry in shards]
        tone_mapped = sum(entry.get("tone_mapped", 0) for entry in entries)
        tone_mapping = [
            f"{tone_mapped} of {sum(entry['samples'] for entry in entries)} videos have a high dynamic range "
            "(HLG or PQ) and were converted to standard range"
        ] * bool(tone_mapped)
        return [*self.annotations.notices, *tone_mapping] + [
            f"{split}: {count} {what} here, {official} in the official release"
            for split, counts in self.annotations.official.items()
            for what, official in counts.items()
            if what == "samples" or self.config.fps is None
            if (count := sum(shard[what] for shard in splits.get(split, ()))) != official
        ]
