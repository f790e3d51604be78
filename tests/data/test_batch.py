"""Tests of packing: samples of any lengths can be taken out of a batch unchanged."""

from __future__ import annotations

import numpy as np
import torch

from signllm.data.loading.batch import LoadedSample, collate

from .conftest import drawn


def item(number: int, frames: int, bad: str | None = None) -> LoadedSample:
    return LoadedSample(
        id=f"v{number}", text=f"t{number}", language="German", frames=drawn(frames, number), bad=bad
    )


def test_frames_can_be_unpacked_again() -> None:
    items = [item(0, 5), item(1, 13), item(2, 1)]
    batch = collate(items, is_real=[True, True, False], positions=np.array([4, 6, 8]), epoch=1, seed=9)
    assert batch.frames is not None
    assert (batch.frames.shape, batch.frames.dtype) == ((19, 3, 48, 48), torch.uint8)
    assert batch.frames.is_contiguous(memory_format=torch.channels_last)
    for entry, packed in zip(items, batch.frames.split(batch.frame_counts.tolist()), strict=True):
        np.testing.assert_array_equal(packed.permute(0, 2, 3, 1).numpy(), entry.frames)
    assert batch.is_real.tolist() == [True, True, False]
    assert (batch.positions.tolist(), batch.epoch, batch.seed, len(batch)) == ([4, 6, 8], 1, 9, 3)


def test_characters_without_frames() -> None:
    items = [LoadedSample(id=str(n), text="t", language="", characters=np.arange(n + 1)) for n in range(3)]
    batch = collate(items, is_real=[True] * 3, positions=np.arange(3), epoch=0, seed=0)
    assert batch.frames is None
    assert batch.characters is not None
    assert batch.character_counts is not None
    assert (batch.characters.tolist(), batch.characters.dtype) == ([0, 0, 1, 0, 1, 2], torch.int64)
    assert batch.character_counts.tolist() == [1, 2, 3]
    assert batch.frame_counts.tolist() == [0, 0, 0]


def test_a_bad_sample_is_padding_and_named_once() -> None:
    items = [item(0, 5), item(1, 13, bad="broken"), item(1, 13, bad="broken")]
    batch = collate(items, is_real=[True, True, False], positions=np.arange(3), epoch=0, seed=0)
    assert batch.is_real.tolist() == [True, False, False]
    assert batch.bad == (("v1", "broken"),)


def test_moving_keeps_everything_else() -> None:
    batch = collate([item(0, 5)], is_real=[True], positions=np.arange(1), epoch=3, seed=4)
    moved = batch.to("meta")
    assert moved.frames is not None
    assert {moved.frames.device.type, moved.frame_counts.device.type, moved.is_real.device.type} == {"meta"}
    assert (moved.ids, moved.texts, moved.languages, moved.epoch, moved.characters) == (
        ["v0"],
        ["t0"],
        ["German"],
        3,
        None,
    )
