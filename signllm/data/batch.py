"""What one rank trains on in one step: several videos packed one behind the other, with their counts.

Videos are not padded to one another. What is padded is the number of videos: the last batch of an epoch
repeats samples with ``is_real`` False, so that every rank always holds equally many and none waits for
another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from signllm.data.packed_frames import PackedFrames


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch of B videos.

    Args:
        ids: names of the videos.
        texts: reference sentences.
        languages: of the sentences.
        frames: uint8 (sum T, 3, H, W), or None if the batch holds characters. In memory the channels come
            last, as decoders write them and the encoder reads them (``torch.channels_last``).
        frame_counts: int64 (B,), frames of each video; 0 if there are none.
        characters: int64 (sum N,), or None if the batch holds frames. Without a codebook float32 (sum N, D).
        character_counts: int64 (B,), or None.
        is_real: bool (B,); False marks padding, which must weigh nothing.
        positions: int64 (B,), place in this epoch over all ranks: rank r of w holds r, r + w, r + 2w, ... of
            a batch. Padding continues the places of its batch; where batches are cut by frames it has 0.
        epoch: from 0.
        seed: of the order.
        bad: (id, reason) of samples that could not be read and were replaced by padding.
        other_texts: for each video the sentence of another one, to ask whether the signs tell them apart.
    """

    ids: list[str]
    texts: list[str]
    languages: list[str]
    frames: torch.Tensor | None
    frame_counts: torch.Tensor
    characters: torch.Tensor | None = None
    character_counts: torch.Tensor | None = None
    is_real: torch.Tensor
    positions: torch.Tensor
    epoch: int
    seed: int
    bad: tuple[tuple[str, str], ...] = ()
    other_texts: list[str] | None = None

    def __len__(self) -> int:
        """Return B."""
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on ``device``."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a copy to the GPU overlaps with computing."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Any) -> Batch:
        import torch

        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True, kw_only=True)
class LoadedSample:
    """One sample as a source loads it: exactly one of frames and characters.

    Args:
        id: name of the video.
        text: reference sentence.
        language: of the sentence.
        frames: uint8 (T, H, W, 3).
        characters: int (N,), or without a codebook float (N, D).
        bad: why it could not be read; then the pictures are a stand-in.
    """

    id: str
    text: str
    language: str
    frames: np.ndarray | None = None
    characters: np.ndarray | None = None
    bad: str | None = None


def collate(
    items: Sequence[LoadedSample],
    *,
    is_real: Sequence[bool],
    positions: np.ndarray,
    epoch: int,
    seed: int,
    packed: PackedFrames | None = None,
) -> Batch:
    """Pack items into a batch; an item that could not be read counts as padding and is named in ``bad``.

    ``packed`` are the frames of all items if they lie in one array already.
    """
    import torch

    if packed is None:
        frames = _concatenate([item.frames for item in items if item.frames is not None])
    else:
        frames = torch.from_numpy(packed.all()) if len(packed) else None
    characters = _concatenate([item.characters for item in items if item.characters is not None])
    return Batch(
        ids=[item.id for item in items],
        texts=[item.text for item in items],
        languages=[item.language for item in items],
        frames=None if frames is None else frames.permute(0, 3, 1, 2),
        frame_counts=torch.tensor([0 if item.frames is None else len(item.frames) for item in items]),
        characters=characters if characters is None or characters.is_floating_point() else characters.long(),
        character_counts=None
        if characters is None
        else torch.tensor([0 if item.characters is None else len(item.characters) for item in items]),
        is_real=torch.tensor([real and item.bad is None for real, item in zip(is_real, items, strict=True)]),
        positions=torch.from_numpy(positions.copy()),
        epoch=epoch,
        seed=seed,
        bad=tuple(
            (item.id, item.bad)
            for real, item in zip(is_real, items, strict=True)
            if real and item.bad is not None
        ),
    )


def _concatenate(arrays: list[np.ndarray]) -> torch.Tensor | None:
    import numpy as np
    import torch

    return torch.from_numpy(np.concatenate(arrays)) if arrays else None
