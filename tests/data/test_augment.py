"""Tests of the augmentation: drawn once per video, reproducible, and without effect when switched off."""

from __future__ import annotations

import numpy as np
import pytest

from signllm.data.loading.augment import AugmentConfig, augment_frames, draw_frame_numbers
from signllm.errors import UsageError

from .conftest import drawn

ALL = AugmentConfig(shift=0.25, brightness=0.2, contrast=0.3, colour=0.2)


def test_off_is_the_identity() -> None:
    frames = drawn(5)
    assert augment_frames(frames, AugmentConfig(), size=48, seed=1, epoch=2, position=3) is not None
    np.testing.assert_array_equal(
        augment_frames(frames, AugmentConfig(), size=48, seed=1, epoch=2, position=3), frames
    )


def test_the_same_place_draws_the_same_and_others_do_not() -> None:
    frames = drawn(3, height=60, width=60)
    assert ALL.compute_decoded_size(48) == 60
    first = augment_frames(frames, ALL, size=48, seed=1, epoch=2, position=3)
    np.testing.assert_array_equal(first, augment_frames(frames, ALL, size=48, seed=1, epoch=2, position=3))
    for other in ({"seed": 2}, {"epoch": 3}, {"position": 4}):
        place = {"seed": 1, "epoch": 2, "position": 3} | other
        assert (augment_frames(frames, ALL, size=48, **place) != first).any()


def test_all_frames_of_a_video_are_changed_alike() -> None:
    still = np.repeat(drawn(1, height=60, width=60), 6, axis=0)
    changed = augment_frames(still, ALL, size=48, seed=0, epoch=0, position=0)
    assert changed.shape == (6, 48, 48, 3)
    assert (changed == changed[:1]).all()
    assert (changed[0] != still[0, 6:54, 6:54]).any()


def test_crops_reach_every_border() -> None:
    rows = np.broadcast_to(np.arange(52, dtype=np.uint8)[None, :, None, None], (1, 52, 52, 3))
    config = AugmentConfig(shift=4 / 48)
    tops = {
        int(augment_frames(rows, config, size=48, seed=0, epoch=0, position=p)[0, 0, 0, 0])
        for p in range(100)
    }
    assert tops == {0, 1, 2, 3, 4}


def test_no_video_is_mirrored_by_default() -> None:
    frames = drawn(2)
    config = AugmentConfig(mirror=0.25)
    shown = [augment_frames(frames, config, size=48, seed=0, epoch=0, position=p) for p in range(400)]
    mirrored = sum((item == frames[:, :, ::-1]).all() for item in shown)
    assert mirrored + sum((item == frames).all() for item in shown) == 400
    assert 60 < mirrored < 140
    plain = [
        augment_frames(frames, AugmentConfig(), size=48, seed=0, epoch=0, position=p) for p in range(400)
    ]
    assert all((item == frames).all() for item in plain)


def test_brightness_moves_the_mean_within_its_limit() -> None:
    grey = np.full((1, 16, 16, 3), 128, np.uint8)
    config = AugmentConfig(brightness=0.1)
    moved = [
        int(augment_frames(grey, config, size=16, seed=0, epoch=0, position=p)[0, 0, 0, 0]) - 128
        for p in range(200)
    ]
    assert -26 <= min(moved) < -20
    assert 20 < max(moved) <= 26


def test_values_out_of_range() -> None:
    with pytest.raises(UsageError, match=r"shift is 1"):
        AugmentConfig(shift=1)


def test_tempo_is_even_bounded_and_drawn_once_per_video() -> None:
    config = AugmentConfig(tempo=0.25)
    counts = []
    for position in range(200):
        shown = draw_frame_numbers(40, config, most=300, seed=1, epoch=0, position=position)
        again = draw_frame_numbers(40, config, most=300, seed=1, epoch=0, position=position)
        np.testing.assert_array_equal(shown, again)
        assert (shown[0], shown[-1]) == (0, 39)
        assert set(np.diff(shown).tolist()) <= {0, 1, 2}
        counts.append(len(shown))
    assert min(counts) >= 30
    assert max(counts) <= int(config.count_most_frames(np.array(40))) == 50
    assert len(set(counts)) > 10
    assert len(draw_frame_numbers(40, config, most=13, seed=1, epoch=0, position=0)) == 13
    assert draw_frame_numbers(40, AugmentConfig(), most=300, seed=1, epoch=0, position=0).tolist() == list(
        range(40)
    )
