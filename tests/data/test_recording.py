"""Tests of samples that are cut out of recordings, for many ways in which containers state times."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from signllm.data.annotations import read_annotations
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, shard, write_shards
from signllm.data.source_samples import Annotations, SourceSample, TimeSpan
from signllm.data.video import recording
from signllm.data.video.decoding import Video, decode_to_rgb, decode_video
from signllm.data.video.frame_folder import encode_png
from signllm.data.video.stored_frames import decode_stored_frames
from signllm.data.video.video_error import VideoError
from signllm.errors import UsageError

from .conftest import drawn

FPS = 25
RGB = functools.partial(decode_to_rgb, fit=None, fps=None)
QUIET = ShardConfig(show_progress=False)
KINDS = {
    "mp4": ("libx264", {"g": "12", "bf": "3"}),
    "mkv": ("libx264", {"g": "50", "bf": "3"}),
    "ts": ("libx264", {"g": "30", "bf": "2"}),
    "avi": ("mpeg4", {"g": "12"}),
    "webm": ("libvpx-vp9", {"g": "40", "deadline": "realtime", "cpu-used": "8"}),
    "gif": ("gif", {}),
}


def read_cut(path: Path, cut: TimeSpan) -> tuple[Video, str]:
    return recording.read_time_span(path, cut, RGB)


def record(path: Path, frames: int = 200, first_pts: int = 0, times: list[int] | None = None) -> Path:
    """Write a recording of 25 frames per second, or with ``times`` in hundredths of a second."""
    codec, options = KINDS[path.suffix[1:]]
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width = stream.height = 48
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        tick = Fraction(1, 100 if times else FPS)
        stream.codec_context.time_base = tick
        for number, frame_HWC in enumerate(drawn(frames)):
            picture = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            picture.pts = times[number] if times else first_pts + number
            picture.time_base = tick
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(params=sorted(KINDS))
def taken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return record(tmp_path / f"long-00:01.5.{request.param}")


@pytest.mark.parametrize(("first", "stop"), [(0, 5), (1, 2), (37, 90), (48, 60), (60, 61), (150, 200)])
def test_a_time_span_has_the_same_frames_as_the_complete_recording(
    taken: Path, first: int, stop: int
) -> None:
    video, _ = read_cut(taken, TimeSpan(first / FPS, stop / FPS))
    np.testing.assert_array_equal(video.frames, decode_video(taken)[first:stop])
    assert video.fps == pytest.approx(FPS, rel=0.01)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_times_count_from_the_recordings_start(tmp_path: Path, kind: str) -> None:
    late = record(tmp_path / f"late.{kind}", first_pts=250)
    np.testing.assert_array_equal(read_cut(late, TimeSpan(3, 5))[0].frames, decode_video(late)[75:125])


def test_adjacent_time_spans_neither_share_nor_lose_frames(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4")
    borders_s = [0, 0.333, 1.0, 1.04, 2.719, 5.5, 8]
    cuts = [TimeSpan(*pair) for pair in itertools.pairwise(borders_s)]
    together = np.concatenate([read_cut(path, cut)[0].frames for cut in cuts])
    np.testing.assert_array_equal(together, decode_video(path))


def test_a_varying_frame_rate_is_cut_by_time(tmp_path: Path) -> None:
    times = [2 * n for n in range(50)] + [100 + 10 * n for n in range(50)]
    path = record(tmp_path / "a.mkv", frames=100, times=times)
    np.testing.assert_array_equal(read_cut(path, TimeSpan(0.5, 2))[0].frames, decode_video(path)[25:60])


def test_only_the_part_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record(tmp_path / "a.mp4")
    packets: list[int] = []
    decoded = recording._TimeSpanReader._decoded

    def counted(self: recording._TimeSpanReader, *, counts: bool) -> object:
        for result in decoded(self, counts=counts):
            packets.append(1)
            yield result

    monkeypatch.setattr(recording._TimeSpanReader, "_decoded", counted)
    assert len(read_cut(path, TimeSpan(6, 7))[0].frames) == 25
    assert len(packets) < 80  # 25, the 12 of a group before, one behind; twice where the first seek missed


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (TimeSpan(9, 10), "the recording ends at 8.00 s"),
        (TimeSpan(7.5, 9.5), "ends at 8.00 s"),
        (TimeSpan(1.001, 1.03), "lies from"),
    ],
)
def test_a_part_that_is_not_there(tmp_path: Path, cut: TimeSpan, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        read_cut(record(tmp_path / "a.mp4"), cut)


def test_an_end_slightly_behind_the_recording_is_taken(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4")
    assert len(read_cut(path, TimeSpan(7, 8.5))[0].frames) == 25
    assert len(read_cut(path, TimeSpan(7, float("inf")))[0].frames) == 25


def table_of(folder: Path) -> Path:
    record(folder / "long.mp4")
    lines = [f"long.mp4\tsentence {n}\t{n * 0.8:.2f}\t{n * 0.8 + 0.72:.2f}" for n in range(9)]
    (folder / "t.tsv").write_text("\n".join(["video\ttext\tstart_s\tend_s", *lines]) + "\n")
    return folder / "t.tsv"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_clips_of_a_recording_become_samples(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    shard("table", table, tmp_path / "out", dataclasses.replace(QUIET, encode="frames"))
    split = ShardIndex(tmp_path / "out").split("train")
    complete = decode_video(tmp_path / "long.mp4")
    for number in range(9):
        np.testing.assert_array_equal(
            decode_stored_frames(split.read(number)), complete[20 * number : 20 * number + 18]
        )
    assert b'"start_s": 1.6' in split.read(2)["json"]


def test_clips_are_the_same_bytes_with_any_workers(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    small = dataclasses.replace(QUIET, shard_size_mb=0.01)
    shard("table", table, tmp_path / "one", small)
    shard("table", table, tmp_path / "three", dataclasses.replace(small, workers=3))
    assert len(contents(tmp_path / "one")) > 3
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_copy_refuses_to_cut(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"encode = copy keeps whole files(.|\n)*--encode h264"):
        shard("table", table_of(tmp_path), tmp_path / "out", dataclasses.replace(QUIET, encode="copy"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encode", ["copy", "frames"])
def test_a_part_of_a_frame_folder(tmp_path: Path, encode: str) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(drawn(30)):
        (folder / f"{number:04d}.png").write_bytes(encode_png(frame))
    clip = SourceSample(id="c", video=folder, text="t", split="dev", fps=10, start_s=1, end_s=2)
    write_shards(Annotations(samples=(clip,)), tmp_path / "out", dataclasses.replace(QUIET, encode=encode))
    stored = decode_stored_frames(ShardIndex(tmp_path / "out").split("dev").read(0))
    np.testing.assert_array_equal(stored, drawn(30)[10:20])


def test_real_recordings_are_cut(realdata: Path) -> None:
    for path in [realdata / "clips/two_video_streams.mp4", realdata / "clips/vertical_full_range.mp4"]:
        complete = decode_video(path)
        (first, *_), stop = (
            read_cut(path, TimeSpan(1, 1.5))[0].frames,
            read_cut(path, TimeSpan(0, 1.5))[0].frames,
        )
        assert (first == complete[len(stop) - len(read_cut(path, TimeSpan(1, 1.5))[0].frames)]).all()
    assert read_annotations("table", realdata / "clips.tsv").samples[0].time_span is None
