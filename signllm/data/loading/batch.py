"""The batch that one rank trains on in one step: several packed videos, with the number of frames of each.

The frames of the videos are concatenated, not padded to a common length. Only the number of videos is padded:
the last batch of an epoch repeats samples with ``is_real`` False, so that every rank has the same number of
videos and no rank waits for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from signllm.data.video.packed_frames import PackedFrames


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The B videos of a global batch that one rank processes.

    Args:
        ids: names of the videos.
        texts: reference sentences.
        languages: languages of the sentences.
        frames: uint8 (sum T, 3, H, W), or None if the batch contains characters. In memory the channels come
            last, as decoders write them and the encoder reads them (``torch.channels_last``).
        frame_counts: number of frames of each video, int64 (B,); 0 without frames.
        characters: int64 (sum N,), or None if the batch contains frames. An encoder without a codebook gives
            float32 (sum N, D) instead.
        character_counts: number of characters of each video, int64 (B,), or None.
        is_real: bool (B,); False marks padding, which must not contribute to any loss.
        positions: position of each video in the epoch over all ranks, int64 (B,): rank r of w has positions
            r, r + w, r + 2w, ... of a batch. Padding continues the positions of its batch; where a limit of
            frames ends batches it has position 0.
        epoch: number of the epoch, from 0.
        seed: random seed of the sample order.
        bad: (id, reason) of samples that could not be read and were replaced by padding.
        other_texts: for each video the sentence of another video, to measure whether the signs distinguish
            the sentences.
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
        """Return the number of videos."""
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on ``device``."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, so that its copy to the GPU overlaps with computation."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def _map_tensors(self, change: Any) -> Batch:
        """Return the batch with ``change`` applied to each tensor."""
        import torch

        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True, kw_only=True)
class LoadedSample:
    """One sample as a source loads it, with either frames or characters.

    Args:
        id: name of the video.
        text: reference sentence.
        language: language of the sentence.
        frames: uint8 (T, H, W, 3), or None.
        characters: int (N,), of an encoder without a codebook float (N, D), or None.
        bad: reason why the sample could not be read; its frames are grey placeholders then.
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
    """Pack samples into a batch; a sample that could not be read counts as padding and is listed in ``bad``.

    Args:
        items: the samples.
        is_real: False for each sample that is padding.
        positions: positions of the samples in the epoch, int64 (B,).
        epoch: number of the epoch, from 0.
        seed: random seed of the sample order.
        packed: the frames of all samples, if they already are in one array.
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
    """Return arrays concatenated as one tensor, None if there are none."""
    import numpy as np
    import torch

    return torch.from_numpy(np.concatenate(arrays)) if arrays else None
