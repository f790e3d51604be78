"""Tests of decoding: real files, display properties of containers, and errors."""

from __future__ import annotations

import io
import random
import struct
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from signllm.data.video import pictures
from signllm.data.video.decoding import decode_video, encode_h264, read_video, shrink_short_side
from signllm.data.video.frame_folder import encode_png
from signllm.data.video.video_error import VideoError

from .conftest import drawn


def bare(source: str | io.BytesIO, frames: int) -> np.ndarray:
    with av.open(source) as container:
        decoded = islice(container.decode(container.streams.best("video")), frames)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])


@pytest.mark.parametrize("shape", [(48, 48), (64, 96), (50, 38), (34, 210)])
def test_stacked_conversion_equals_conversion_frame_by_frame(shape: tuple[int, int]) -> None:
    data = encode_h264(drawn(70, height=shape[0], width=shape[1]), 25)
    np.testing.assert_array_equal(decode_video(data), bare(io.BytesIO(data), 70))


@pytest.mark.parametrize("name", ["vertical_full_range.mp4", "two_video_streams.mp4", "take_care.gif"])
def test_real_files_decode_as_by_the_bare_decoder(realdata: Path, name: str) -> None:
    path = realdata / "clips" / name
    np.testing.assert_array_equal(decode_video(path)[:50], bare(str(path), 50))


@pytest.mark.parametrize(
    ("name", "frames", "height", "width", "fps"),
    [
        ("vertical_full_range.mp4", 58, 720, 540, 359 / 12),
        ("two_video_streams.mp4", 390, 270, 480, 30000 / 1001),
        ("dailymoth.gif", 181, 224, 224, 25),
        ("any_questions.gif", 28, 338, 600, 10),
    ],
)
def test_real_files(realdata: Path, name: str, frames: int, height: int, width: int, fps: float) -> None:
    video = read_video(realdata / "clips" / name)
    assert video.frames.shape == (frames, height, width, 3)
    assert video.fps == pytest.approx(fps, rel=1e-4)


def test_a_file_and_its_bytes_give_the_same(tmp_path: Path) -> None:
    data = encode_h264(drawn(9), 25)
    # FFmpeg would take the part before the colon for a protocol
    path = tmp_path / "-Mci9oyb5V2E-00:00:05.333.mp4"
    path.write_bytes(data)
    np.testing.assert_array_equal(decode_video(path), decode_video(data))


def test_size_scales_the_short_side_and_takes_the_middle() -> None:
    frames = np.zeros((4, 64, 128, 3), np.uint8)
    frames[:, :, 32:96] = 200
    square = decode_video(encode_h264(frames, 25), size=32)
    assert square.shape == (4, 32, 32, 3)
    assert square.min() > 150  # the dark thirds left and right are cut away


@pytest.mark.parametrize(
    ("size", "kept"), [((600, 338), (454, 256)), ((210, 260), (210, 260)), ((48, 48), (48, 48))]
)
def test_shards_never_enlarge(size: tuple[int, int], kept: tuple[int, int]) -> None:
    assert shrink_short_side(256)(*size) == kept


def rotated(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Write the 2 x 2 part (a, b, c, d) of the display matrix into an mp4 (ISO 14496-12, 8.3.2)."""
    a, b, c, d = (value << 16 for value in matrix)
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [((0, 1, -1, 0), (0, -1)), ((-1, 0, 0, -1), (-1, -1)), ((0, -1, 1, 0), (-1, 0)), ((1, 0, 0, 1), (0, 0))],
)
def test_rotation_is_applied(matrix: tuple[int, int, int, int], corner: tuple[int, int]) -> None:
    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :16, :16] = (
        255  # bright at the top left; (x, y) -> (ax + cy, bx + dy) moves it to another corner
    )
    upright = decode_video(rotated(encode_h264(frames, 25), matrix))
    assert upright.shape[1:3] == ((64, 32) if matrix[0] == 0 else (32, 64))
    corners = {
        (y, x): upright[0, 4 if y == 0 else -4, 4 if x == 0 else -4].mean() for y in (0, -1) for x in (0, -1)
    }
    assert max(corners, key=lambda place: corners[place]) == corner


def test_resampling_in_time_keeps_the_duration() -> None:
    data = encode_h264(drawn(60), 30)
    video = read_video(data, fps=10)
    assert (len(video.frames), video.fps) == (20, 10)
    np.testing.assert_array_equal(video.frames, decode_video(data)[::3])
    assert len(read_video(data, fps=60).frames) == 120


def with_times(pts: list[int], frames: np.ndarray) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = frames.shape[1]
        stream.pix_fmt, stream.options = "yuv420p", {"bf": "0", "crf": "1"}
        stream.codec_context.thread_count = 1
        for frame, time in zip(frames, pts, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = time
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return target.getvalue()


def test_varying_rate_and_a_first_time_stamp_that_is_not_zero() -> None:
    # shown at 0, 40, 200 and 240 ms, beginning at 2 s: at 25 fps the second stands for four frames
    frames = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (20, 90, 160, 230)])
    video = read_video(with_times([50, 51, 55, 56], frames), fps=25)
    levels = video.frames[:7].mean((1, 2, 3))
    assert [int(np.abs(np.array([20, 90, 160, 230]) - level).argmin()) for level in levels] == [
        0,
        1,
        1,
        1,
        1,
        2,
        3,
    ]


def sound_only() -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    return target.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no video at all", "not a video that FFmpeg can decode"),
        (b"", "not a video that FFmpeg can decode"),
        (sound_only(), "no video stream"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video that FFmpeg can decode"),
    ],
)
def test_what_is_no_video_is_named(data: bytes, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        decode_video(data)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_mp4_is_an_error(share: float) -> None:
    data = encode_h264(drawn(60), 25)
    with pytest.raises(VideoError):
        decode_video(data[: int(len(data) * share)])


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode_video(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="zero bytes"):
        decode_video(tmp_path / "empty.mp4")


def test_limits_on_frames_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_h264(drawn(40), 25)
    monkeypatch.setattr(pictures, "MAX_FRAMES", 30)
    with pytest.raises(VideoError, match="more than 30 frames"):
        decode_video(data)
    monkeypatch.setattr(pictures, "MAX_FRAMES", 40)
    monkeypatch.setattr(pictures, "MAX_SOURCE_PIXELS", 35 * 48 * 48)
    with pytest.raises(VideoError, match="more than 80640 pixels"):
        read_video(data, fit=shrink_short_side(16))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    with pytest.raises(VideoError, match=r"48 x 48 .*1000 pixels"):
        decode_video(data)


def test_a_name_that_is_not_utf8_does_not_matter() -> None:
    data = encode_h264(drawn(5), 25)
    assert b"VideoHandler" in data
    assert len(decode_video(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))) == 5


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Flip, overwrite, cut out or insert at random places, half of them near the end (an mp4's tables)."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 3, 10, 50])):
        start = max(0, len(changed) - 1500) if chance.random() < 0.5 else 0
        place = chance.randrange(start, len(changed))
        match chance.randrange(4):
            case 0:
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                changed[place : place + 4] = bytes([chance.choice([0, 0x7F, 0xFF])]) * 4
            case 2 if len(changed) > 100:
                del changed[place : place + chance.randrange(1, 30)]
            case _:
                changed[place:place] = chance.randbytes(chance.randrange(1, 8))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["mp4", "png"])
def test_damaged_files_decode_or_end_in_the_named_error(kind: str) -> None:
    chance = random.Random(5)
    frames = drawn(20)
    complete = encode_h264(frames, 25) if kind == "mp4" else encode_png(frames[0])
    refused = 0
    for _ in range(200):
        damaged = mutated(complete, chance)
        try:
            decoded = decode_video(damaged if kind == "mp4" else [damaged], size=48)
        except VideoError:
            refused += 1
        else:
            assert (decoded.shape[1:], decoded.dtype) == ((48, 48, 3), np.uint8)
    assert 50 < refused < 200
