"""Files of the character sequences into which VQ-Sign encoded the videos, so that no video is decoded again.

There is one safetensors file per shard, ``run/characters/SPLIT-000000.safetensors``. It contains the packed
sequences of the shard and their lengths; its header contains the ids, the fingerprint of the codebook, and
the settings that the sequences depend on. Each file is written atomically, so an interrupted encoding
continues with the missing files. An encoder without a codebook produces vectors, float32 (N, D), instead of
characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signllm.atomic_files import atomic_write
from signllm.errors import UsageError
from signllm.storage import wait_for_storage

FOLDER = "characters"
_FORMAT = "signllm-characters-1"
_REMEDY = "run signllm compose again"


@dataclass(frozen=True)
class _CharactersFile:
    """Contents of one file.

    Attributes:
        packed: concatenated sequences, int32 (sum N,) or float32 (sum N, D).
        counts: length of each sequence, int64 (B,).
        ids: id of each video.
        codebook: fingerprint of the codebook.
        made_by: other settings that the sequences depend on.
    """

    packed: np.ndarray
    counts: np.ndarray
    ids: list[str]
    codebook: str
    made_by: dict[str, Any]


def characters_path(run: Path, split: str, shard: int) -> Path:
    """Return the path of the characters of a shard in a run folder."""
    return run / FOLDER / f"{split}-{shard:06d}.safetensors"


def list_characters_files(run: Path, split: str) -> list[Path]:
    """Return the files of a split in the order of its shards; an older run has one file per split."""
    older = run / f"characters.{split}.safetensors"
    paths = sorted((run / FOLDER).glob(f"{split}-{'[0-9]' * 6}.safetensors"))
    return paths or ([older] if older.is_file() else [])


def save_characters(
    path: Path | str,
    characters: Mapping[str, np.ndarray],
    codebook: str,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Write the sequences of a shard to a file atomically.

    Args:
        path: the file.
        characters: characters (N,) or vectors (N, D) of each id.
        codebook: fingerprint of the codebook.
        made_by: other settings that the sequences depend on, as plain values, for :func:`read_provenance`.
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
    atomic_write(Path(path), save(tensors, metadata=header))


def _to_array(sequence: np.ndarray) -> np.ndarray:
    """Return characters as int32 (N,), vectors as float32 (N, D)."""
    array = np.asarray(sequence)
    return array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int32).reshape(-1)


def load_characters(path: Path | str) -> tuple[dict[str, np.ndarray], str]:
    """Read one file; return the sequence of each id and the fingerprint of the codebook.

    Returns:
        A dictionary of int64 (N,) or float32 (N, D), and the fingerprint.

    Raises:
        UsageError: the file does not exist, or :func:`save_characters` did not write it.
    """
    file = _read_file(Path(path))
    return _split_sequences(file), file.codebook


def load_split_characters(run: Path, split: str) -> tuple[dict[str, np.ndarray], str]:
    """Read all files of a split in the order of its shards; return what :func:`load_characters` returns.

    Raises:
        UsageError: there is no file, a file is damaged, or the files belong to several codebooks.
    """
    characters: dict[str, np.ndarray] = {}
    codebook = ""
    for path in list_characters_files(run, split):
        file = _read_file(path)
        codebook = codebook or file.codebook
        if file.codebook != codebook:
            raise UsageError(
                f"the split has characters of codebook {file.codebook} and of codebook {codebook}, because "
                "an encoding was interrupted",
                where=path,
                remedy=_REMEDY,
            )
        characters |= _split_sequences(file)
    if not codebook:
        raise UsageError(
            f"there are no character sequences of the split {split!r}", where=run / FOLDER, remedy=_REMEDY
        )
    return characters, codebook


def load_packed_characters(paths: Sequence[Path]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Read several files without separating their sequences.

    Args:
        paths: the files.

    Returns:
        The characters (sum N,) in the smallest sufficient integer type, which is one byte up to K = 256, and
        the length of each sequence, int64 (B,). Vectors are returned as the character 0.

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
    """Return the settings that a file's characters depend on, with ``codebook``; None if it is unreadable."""
    try:
        file = _read_file(path)
    except UsageError:
        return None
    return {**file.made_by, "codebook": file.codebook}


def _split_sequences(file: _CharactersFile) -> dict[str, np.ndarray]:
    """Return the sequence of each id in a file."""
    packed = file.packed if file.packed.ndim == 2 else file.packed.astype(np.int64)
    parts = np.split(packed, np.cumsum(file.counts)[:-1]) if file.ids else []
    return dict(zip(file.ids, parts, strict=True))


def _read_file(path: Path) -> _CharactersFile:
    """Return the contents of a file, waiting for its storage."""
    from safetensors import SafetensorError, safe_open

    def read() -> tuple[dict[str, str], np.ndarray, np.ndarray]:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise UsageError("the file contains no character sequences", where=path, remedy=_REMEDY)
            return header, file.get_tensor("characters"), file.get_tensor("counts")

    try:
        header, packed, counts = wait_for_storage(read, path)
        ids, made_by = json.loads(header["ids"]), json.loads(header.get("made_by", "{}"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"no character sequences can be read: {error}", where=path, remedy=_REMEDY) from None
    if len(ids) != len(counts) or counts.sum() != len(packed):
        raise UsageError(
            f"the file has {len(ids)} names for {len(counts)} sequences", where=path, remedy=_REMEDY
        )
    return _CharactersFile(packed, counts, ids, header["codebook"], made_by)
