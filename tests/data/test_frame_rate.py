"""Tests of frame rates: measured from time stamps, and the frames that are read at another rate."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards.index import ShardIndex, Split
from signllm.data.shards.shard_inspection import format_info_table, summarize_shards
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.decoding import encode_h264, read_video
from signllm.data.video.frame_rate import (
    Timing,
    choose_common_rate,
    count_frames_to_read,
    frame_numbers_at_rate,
    frame_numbers_to_read,
    measure_timing,
)
from signllm.data.video.timed_frames import join_chunks, read_timed_chunks
from signllm.data.video.video_error import VideoError

from .made_videos import numbered, numbers_of, video


@given(
    frames=st.integers(1, 400),
    source=st.sampled_from([12.5, 24, 25, 29.97003, 30, 50, 60]),
    fps=st.floats(5, 60),
)
def test_a_steady_video_is_read_as_by_its_times(frames: int, source: float, fps: float) -> None:
    by_times = frame_numbers_at_rate(np.arange(frames) / source, source, fps)
    places = frame_numbers_to_read(frames, source, fps, None)
    assert abs(len(places) - len(by_times)) <= 1  # half a frame at the end may be rounded either way
    shorter = min(len(places), len(by_times))
    assert (np.abs(places[:shorter] - by_times[:shorter]) <= 1).all()
    assert len(places) == count_frames_to_read(np.array([frames]), np.array([source]), fps)[0]
    assert (np.diff(places) >= 0).all()
    assert places[0] == 0
    assert places[-1] < frames


@pytest.mark.parametrize("source", [24.0, 25.0, 29.97003, 60.0])
def test_the_own_rate_takes_every_frame(source: float) -> None:
    assert frame_numbers_to_read(313, source, source, None).tolist() == [*range(313)]
    assert frame_numbers_at_rate(np.arange(313) / source, source, source).tolist() == [*range(313)]
    rounded_to_ms = (np.arange(313) / source).round(3)
    assert frame_numbers_at_rate(rounded_to_ms, source, source).tolist() == [*range(313)]


def test_twice_the_rate_takes_every_second_frame_and_half_of_it_each_twice() -> None:
    assert frame_numbers_to_read(20, 50, 25, None).tolist() == [*range(0, 20, 2)]
    assert frame_numbers_to_read(3, 25, 50, None).tolist() == [0, 0, 1, 1, 2, 2]
    assert frame_numbers_to_read(9, 75, 25, None).tolist() == [0, 3, 6]


def test_a_long_video_is_thinned_at_its_new_rate() -> None:
    full, thinned = frame_numbers_to_read(400, 50, 25, None), frame_numbers_to_read(400, 50, 25, 40)
    np.testing.assert_array_equal(thinned, full[np.linspace(0, 199, 40).round().astype(int)])
    assert (
        len(frame_numbers_to_read(20_000, 0.001, 25, 300)) == 300
    )  # of 23 days, without listing 50 million frames


def test_the_usual_rate_is_that_of_the_middle_second() -> None:
    assert choose_common_rate(np.array([1.0, 1, 1]), np.array([25.0, 25, 25])) == 25
    assert choose_common_rate(np.array([1.0, 10, 1]), np.array([24.0, 30, 60])) == 30
    assert choose_common_rate(np.array([5.0, 5]), np.array([50.0, 25])) == 25


def test_slow_videos_are_not_thinned_for_slower_ones() -> None:
    assert choose_common_rate(np.array([3.0, 2]), np.array([10.0, 10])) == 10
    assert choose_common_rate(np.array([9.0, 1]), np.array([10.0, 25])) == 25
    assert choose_common_rate(np.array([9.0, 1]), np.array([10.0, 60])) == 25
    assert choose_common_rate(np.array([9.0, 1]), np.array([12.0, 15])) == 15


@pytest.mark.parametrize(
    ("times_s", "stated_fps", "timing"),
    [
        (np.arange(50) / 25, 25.0, Timing(25.0)),
        (np.arange(50) / 25, 240.0, Timing(25.0)),
        ([0.0], 30.0, Timing(30.0)),
        ([1.0, 1.0, 1.0], 30.0, Timing(30.0)),
        ([0.0, 0.04, 0.02, 0.12], 25.0, Timing(25.0)),  # a damaged file steps back
    ],
)
def test_measured_rates(times_s: list[float], stated_fps: float, timing: Timing) -> None:
    measured = measure_timing(list(times_s), 0.0, stated_fps)
    assert (measured.fps, measured.steady_fps) == (pytest.approx(timing.fps), timing.steady_fps)


RATES = {"once": 25.0, "twice": 50.0}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Return a split with the same frames at 25 and, repeated, at 50 frames per second, and one at 30."""
    folder, clips = tmp_path_factory.mktemp("rates"), []
    pictures = numbered(40, 48, 48)
    videos = {
        "once": (pictures, 25.0),
        "twice": (pictures.repeat(2, axis=0), 50.0),
        "other": (pictures[:30], 30.0),
    }
    for name, (frames, fps) in videos.items():
        path = folder / f"{name}.mp4"
        path.write_bytes(encode_h264(frames, fps, crf=4))
        clips.append(SourceSample(id=name, video=path, text=f"text {name}", split="train"))
    write_shards(
        Annotations(samples=tuple(clips)), folder / "out", ShardConfig(show_progress=False, encode="copy")
    )
    return ShardIndex(folder / "out").split("train")


def config(**settings: object) -> DataConfig:
    return DataConfig(size=48, workers=0, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("cache_gb", [0.0, 0.1])
def test_training_reads_the_same_frames_at_any_rate(split: Split, cache_gb: float) -> None:
    source = VideoSource(split, config(fps=25.0, cache_gb=cache_gb), augment=False)
    assert source.frame_counts is not None
    assert source.frame_counts.tolist() == [40, 40, 25]
    for _ in range(2):
        items = [source.load(place, seed=0, epoch=0, position=0) for place in range(3)]
        once, twice, other = (numbers_of(item.frames) for item in items if item.frames is not None)
        assert once == twice == [*range(40)]
        assert len(other) == 25
        assert [item.bad for item in items] == [None] * 3


def test_without_a_rate_every_frame_is_read(split: Split) -> None:
    source = VideoSource(split, config(), augment=False)
    assert source.frame_counts is not None
    assert source.frame_counts.tolist() == [40, 80, 30]
    frames = source.load(1, seed=0, epoch=0, position=0).frames
    assert frames is not None
    assert len(frames) == 80


def test_training_and_translation_read_the_same_frames(split: Split) -> None:
    for fps in (12.5, 24.0, 30.0):
        source = VideoSource(split, config(fps=fps), augment=False)
        for place in range(3):
            item = source.load(place, seed=0, epoch=0, position=0)
            timed = join_chunks(read_timed_chunks(split.read(place)["mp4"], size=48, at_fps=fps))
            np.testing.assert_array_equal(item.frames, timed.frames)
            np.testing.assert_allclose(np.diff(timed.edges_s), 1 / fps)


def test_batches_are_cut_by_the_frames_that_are_read_and_resume_exactly(split: Split) -> None:
    """At 25 frames per second two of the videos have 40 frames, so a batch of 80 frames contains both."""
    settings = config(fps=25.0, max_frames=40, max_frames_per_batch=80)
    loader = Loader(VideoSource(split, settings), batch_size=3, epochs=4)
    batches, states = [], []
    for batch in loader:
        batches.append((batch.ids, batch.frame_counts.tolist()))
        states.append(loader.state_dict())
        assert sum(batch.frame_counts.tolist()) <= 80
    again = Loader(VideoSource(split, settings), batch_size=3, epochs=4)
    again.load_state_dict(states[1])
    assert [(batch.ids, batch.frame_counts.tolist()) for batch in again] == batches[2:]


def test_tempo_and_rate_together_stay_within_the_limit(split: Split) -> None:
    from signllm.data.loading.pipeline import AugmentConfig

    source = VideoSource(split, config(fps=25.0, max_frames=44, augment=AugmentConfig(tempo=0.2)))
    for position in range(6):
        frames = source.load(1, seed=0, epoch=0, position=position).frames
        assert frames is not None
        assert 32 <= len(frames) <= 44
        assert numbers_of(frames[:1]) == [0]


def test_info_lists_the_rates_and_warns_of_mixed_ones(split: Split) -> None:
    info = summarize_shards(Path(split.tars[0]).parent)
    assert info["splits"]["train"]["frame_rates"] == {"25": 1, "30": 1, "50": 1}
    assert any("25 to 50" in warning for warning in info["warnings"])
    assert "25 (1), 30 (1), 50 (1)" in format_info_table(info)


@given(places=st.lists(st.floats(0.001, 0.2), min_size=2, max_size=40), fps=st.sampled_from([12.5, 25, 40]))
def test_a_recording_in_runs_is_resampled_as_in_one(places: list[float], fps: float) -> None:
    from signllm.data.video.timed_frames import TimedFrames, _resample_chunks

    edges_s = np.cumsum([0.5, *places])
    frames = np.arange(len(places), dtype=np.uint8).reshape(-1, 1, 1, 1)
    runs = [TimedFrames(frames[at : at + 3], edges_s[at : at + 4]) for at in range(0, len(frames), 3)]
    shown = [run.frames.ravel() for run in _resample_chunks(iter(runs), 25.0, fps)]
    together = [
        run.frames.ravel() for run in _resample_chunks(iter([TimedFrames(frames, edges_s)]), 25.0, fps)
    ]
    assert abs(len(np.concatenate(shown)) - len(together[0])) <= 1
    shorter = min(len(np.concatenate(shown)), len(together[0]))
    np.testing.assert_array_equal(np.concatenate(shown)[:shorter], together[0][:shorter])


def test_a_time_stamp_far_off_takes_no_memory() -> None:
    """Damage to a few bytes may give a frame a time that is years after the others."""
    times_ms = [0, 40, 80, 10**10]
    data = video(numbered(4), container="matroska", times=times_ms, tick=Fraction(1, 1000))
    assert len(read_video(data).frames) == 4
    assert measure_timing([0, 0.04, 0.08, 1e7], 0.0, 25.0) == Timing(25.0)
    with pytest.raises(VideoError):
        read_video(data, fps=25)
    with pytest.raises(VideoError):
        join_chunks(read_timed_chunks(data, size=48, at_fps=25))
