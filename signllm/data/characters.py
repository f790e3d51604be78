"""Character sequences on disk: what VQ-Sign read from every video, so that none need be decoded again.

One safetensors file: all sequences packed, their counts, and in its header the ids and the fingerprint of the
codebook they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from signllm.data.tar import write_atomically
from signllm.errors import UsageError

_FORMAT = "signllm-characters-1"


def save_characters(path: Path | str, characters: Mapping[str, np.ndarray], codebook: str) -> None:
    """Write id → character numbers, int (N,), with the fingerprint of their codebook; whole or not at all."""
    from safetensors.numpy import save

    sequences = [np.asarray(sequence, np.int32).reshape(-1) for sequence in characters.values()]
    tensors = {
        "characters": np.concatenate([np.zeros(0, np.int32), *sequences]),
        "counts": np.array([len(sequence) for sequence in sequences], np.int64),
    }
    header = {
        "format": _FORMAT,
        "codebook": codebook,
        "ids": json.dumps(list(characters), ensure_ascii=False),
    }
    write_atomically(Path(path), save(tensors, metadata=header))


def load_characters(path: Path | str) -> tuple[dict[str, np.ndarray], str]:
    """Return id → int64 (N,), and the fingerprint of the codebook.

    Raises:
        UsageError: no such file, or not one that :func:`save_characters` wrote.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "run signllm compose again"
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise UsageError("not a file of character sequences", where=path, remedy=remedy)
            packed, counts = file.get_tensor("characters"), file.get_tensor("counts")
        ids = json.loads(header["ids"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"no character sequences: {error}", where=path, remedy=remedy) from None
    if len(ids) != len(counts) or counts.sum() != len(packed):
        raise UsageError(f"{len(ids)} names for {len(counts)} sequences", where=path, remedy=remedy)
    sequences = np.split(packed.astype(np.int64), np.cumsum(counts)[:-1]) if len(ids) else []
    return dict(zip(ids, sequences, strict=True)), header["codebook"]
