"""Character sequences on disk: what VQ-Sign read from every video, so that none need be decoded again.

One safetensors file per shard, ``run/characters/SPLIT-000000.safetensors``: the shard's sequences packed,
their counts, and in its header the ids, the fingerprint of the codebook they belong to, and what else decided
them. Each is there whole or not at all, so an encoding that was stopped goes on with the files that are
missing. An encoder without a codebook leaves vectors, float32 (N, D), where others leave characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signllm.data.tar import write_atomically
from signllm.errors import UsageError
from signllm.storage import wait_for_storage

FOLDER = "characters"
_FORMAT = "signllm-characters-1"
_REMEDY = "run signllm compose again"


@dataclass(frozen=True)
class _CharactersFile:
    """One file: ``packed`` int32 (sum N,) or float32 (sum N, D), ``counts`` int64 (B,), and its header."""

    packed: np.ndarray
    counts: np.ndarray
    ids: list[str]
    codebook: str
    made_by: dict[str, Any]


def characters_path(run: Path, split: str, shard: int) -> Path:
    """Return where the characters of a shard belong in a run folder."""
    return run / FOLDER / f"{split}-{shard:06d}.safetensors"


def list_characters_files(run: Path, split: str) -> list[Path]:
    """List the files of a split in the order of its shards; of an earlier version's run, its one file."""
    earlier = run / f"characters.{split}.safetensors"
    found = sorted((run / FOLDER).glob(f"{split}-{'[0-9]' * 6}.safetensors"))
    return found or ([earlier] if earlier.is_file() else [])


def save_characters(
    path: Path | str,
    characters: Mapping[str, np.ndarray],
    codebook: str,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Write id → characters (N,) or vectors (N, D), with the codebook's fingerprint; whole or not at all.

    ``made_by``: what else decided them, as plain values; :func:`read_provenance` gives it back.
    """
    from safetensors.numpy import save

    sequences = [_to_array(sequence) for sequence in characters.values()] or [np.zeros(0, np.int32)]
    tensors = {
        "characters": np.concatenate(sequences),
        "counts": np.array([len(sequence) for sequence in characters.values()], np.int64),
    }
    header = {
        "format": _FORMAT,
        "codebook": codebook,
        "ids": json.dumps(list(characters), ensure_ascii=False),
        "made_by": json.dumps(dict(made_by or {}), sort_keys=True),
    }
    write_atomically(Path(path), save(tensors, metadata=header))


def _to_array(sequence: np.ndarray) -> np.ndarray:
    """Return characters as int32 (N,), vectors as float32 (N, D)."""
    given = np.asarray(sequence)
    return given.astype(np.float32) if given.dtype.kind == "f" else given.astype(np.int32).reshape(-1)


def load_characters(path: Path | str) -> tuple[dict[str, np.ndarray], str]:
    """Return id → int64 (N,) or float32 (N, D) of one file, and the fingerprint of the codebook.

    Raises:
        UsageError: no such file, or not one that :func:`save_characters` wrote.
    """
    file = _read_file(Path(path))
    return _split_sequences(file), file.codebook


def load_split_characters(run: Path, split: str) -> tuple[dict[str, np.ndarray], str]:
    """Return the same of a whole split, in the order of its shards.

    Raises:
        UsageError: there are none, a file is damaged, or they are of several codebooks.
    """
    characters: dict[str, np.ndarray] = {}
    codebook = ""
    for path in list_characters_files(run, split):
        file = _read_file(path)
        codebook = codebook or file.codebook
        if file.codebook != codebook:
            raise UsageError(
                f"characters of codebook {file.codebook} beside those of {codebook}: an encoding was stopped",
                where=path,
                remedy=_REMEDY,
            )
        characters |= _split_sequences(file)
    if not codebook:
        raise UsageError(f"no character sequences of the split {split!r}", where=run / FOLDER, remedy=_REMEDY)
    return characters, codebook


def load_packed_characters(paths: Sequence[Path]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Return the characters of several files (sum N,) and the counts of their videos, int64 (B,).

    Characters come in the smallest integers that hold them all: a byte each up to K = 256. A vector is the
    character 0.

    Raises:
        UsageError: a file is missing or damaged.
    """
    packed, counts = [np.zeros(0, np.uint8)], [np.zeros(0, np.int64)]
    for path in paths:
        file = _read_file(path)
        numbers = np.zeros(len(file.packed), np.uint8) if file.packed.ndim == 2 else file.packed
        least, most = numbers.min(initial=0), numbers.max(initial=0)
        packed.append(numbers.astype(np.result_type(np.min_scalar_type(least), np.min_scalar_type(most))))
        counts.append(file.counts)
    return np.concatenate(packed), np.concatenate(counts)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what decided the characters of a file, with their ``codebook``; None if it is not whole."""
    try:
        file = _read_file(path)
    except UsageError:
        return None
    return {**file.made_by, "codebook": file.codebook}


def _split_sequences(file: _CharactersFile) -> dict[str, np.ndarray]:
    packed = file.packed if file.packed.ndim == 2 else file.packed.astype(np.int64)
    parts = np.split(packed, np.cumsum(file.counts)[:-1]) if file.ids else []
    return dict(zip(file.ids, parts, strict=True))


def _read_file(path: Path) -> _CharactersFile:
    from safetensors import SafetensorError, safe_open

    def read() -> tuple[dict[str, str], np.ndarray, np.ndarray]:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise UsageError("not a file of character sequences", where=path, remedy=_REMEDY)
            return header, file.get_tensor("characters"), file.get_tensor("counts")

    try:
        header, packed, counts = wait_for_storage(read, path)
        ids, made_by = json.loads(header["ids"]), json.loads(header.get("made_by", "{}"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"no character sequences: {error}", where=path, remedy=_REMEDY) from None
    if len(ids) != len(counts) or counts.sum() != len(packed):
        raise UsageError(f"{len(ids)} names for {len(counts)} sequences", where=path, remedy=_REMEDY)
    return _CharactersFile(packed, counts, ids, header["codebook"], made_by)
