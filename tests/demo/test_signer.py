"""Signers: what is drawn is a function of signer, units and seed, and the recorded truth fits the frames."""

from dataclasses import replace

import numpy as np
import pytest

from signllm.demo.language import HANDSHAPES, LEVELS, LOCATIONS, MOVEMENTS, Unit, units
from signllm.demo.signer import FRAME_SIZE, Recording, Signer, make_signer, record
from signllm.demo.studio import StudioConfig, takes

EASY = LEVELS["easy"]
SEQUENCE = (3, 11, 0, 17, 5)


def filmed(signer: Signer | None = None, *, level: str = "easy", seed: int = 5) -> Recording:
    signer = signer or make_signer("ann", 1, LEVELS[level])
    return record(signer, SEQUENCE, units(level), LEVELS[level], seed)


def test_frames_are_small_colour_pictures_that_change() -> None:
    frames = filmed().frames
    assert frames.dtype == np.uint8
    assert frames.shape[1:] == (FRAME_SIZE, FRAME_SIZE, 3)
    assert np.abs(np.diff(frames.astype(int), axis=0)).max() > 40


def test_the_same_take_gives_the_same_pixels_and_another_seed_others() -> None:
    np.testing.assert_array_equal(filmed().frames, filmed().frames)
    again, other = filmed().frames, filmed(seed=6).frames
    assert again.shape != other.shape or (again != other).any()


@pytest.mark.parametrize("level", LEVELS)
def test_boundaries_follow_each_other_through_the_frames(level: str) -> None:
    recording = filmed(level=level)
    assert recording.units == SEQUENCE
    assert len(recording.starts) == len(recording.ends) == len(SEQUENCE)
    assert recording.starts[0] > 0
    assert recording.ends[-1] < len(recording.frames)
    assert recording.ends[:-1] == recording.starts[1:]
    assert all(end - start >= 6 for start, end in zip(recording.starts, recording.ends, strict=True))


def test_signers_look_different() -> None:
    """Beyond the noise of the camera: the mean pictures of two people differ."""
    one, other = (filmed(make_signer("x", seed, EASY)).frames.mean(axis=0) for seed in (1, 2))
    assert np.abs(one - other).mean() > 3


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dev_and_test_signers_are_nobody_of_the_train_split(level: str, seed: int) -> None:
    planned = list(takes(StudioConfig(train=20, dev=2, test=2, level=level, seed=seed)))
    faces = {
        split: {replace(take.signer, name="") for take in planned if take.split == split}
        for split in ("train", "dev", "test")
    }
    assert [len(faces[split]) for split in faces] == [LEVELS[level].train_signers, 1, 1]
    assert not faces["train"] & faces["test"]
    assert not faces["train"] & faces["dev"]
    assert not faces["dev"] & faces["test"]


def test_a_unit_looks_unlike_one_of_another_handshape_place_or_movement() -> None:
    """Each feature is visible: the held picture, or its change in time, differs more than two takes do."""
    still = replace(make_signer("ann", 1, EASY), jitter=0.0)
    base = Unit(handshape="index", location="chest", movement="hold")

    def mean_and_motion(unit: Unit, seed: int = 1) -> tuple[np.ndarray, float]:
        recording = record(still, [0], [unit], EASY, seed)
        steady = recording.frames[recording.starts[0] + 6 : recording.ends[0]].astype(float)
        return steady.mean(axis=0), float(steady.std(axis=0).max())

    noise = np.abs(mean_and_motion(base)[0] - mean_and_motion(base, 2)[0]).max()
    others = [replace(base, handshape=shape) for shape in HANDSHAPES if shape != "index"]
    others += [replace(base, location=place) for place in LOCATIONS if place != "chest"]
    for other in others:
        assert np.abs(mean_and_motion(other)[0] - mean_and_motion(base)[0]).max() > 3 * noise
    for movement in MOVEMENTS:
        assert (mean_and_motion(replace(base, movement=movement))[1] > 3 * mean_and_motion(base)[1]) == (
            movement != "hold"
        )


def test_only_the_hard_level_lets_a_unit_lean_towards_the_next() -> None:
    """Coarticulation: how a unit is held depends on what follows it."""

    def frame_of_sign(level: str, following: str) -> np.ndarray:
        chosen = replace(LEVELS[level], frames_per_unit=12)
        steady = replace(make_signer("ann", 1, chosen), jitter=0.0, tempo=1.0)
        inventory = [
            Unit(handshape="flat", location="left", movement="hold"),
            Unit(handshape="flat", location=following, movement="hold"),
        ]
        recording = record(steady, [0, 1], inventory, chosen, 3)
        return recording.frames[recording.ends[0] - 2].astype(float)

    noise = np.abs(frame_of_sign("easy", "right") - frame_of_sign("easy", "left")).max()
    assert noise < 25  # the camera's
    assert np.abs(frame_of_sign("hard", "right") - frame_of_sign("hard", "left")).max() > 40
