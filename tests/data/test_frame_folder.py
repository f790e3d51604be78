"""Tests of folders of frames: the order of the numbers, other files, and missing frames."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from signllm.data.video.decoding import decode_video, read_video
from signllm.data.video.frame_folder import decode_image, encode_png, list_frame_files, read_image_size
from signllm.data.video.video_error import VideoError

from .conftest import drawn


def folder_of(path: Path, frames: np.ndarray, name: str = "images{}.png") -> Path:
    path.mkdir(exist_ok=True)
    for number, frame in enumerate(frames, start=1):
        (path / name.format(number)).write_bytes(encode_png(frame))
    return path


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frames = drawn(12)
    folder = folder_of(tmp_path / "clip", frames)
    assert [path.name for path in list_frame_files(folder)][8:] == [f"images{n}.png" for n in (9, 10, 11, 12)]
    np.testing.assert_array_equal(decode_video(folder), frames)


def test_stray_files_are_ignored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", drawn(3))
    for stray in ("createDnnTrainingLabels-profile.py.lprof", "Thumbs.db", "._images1.png"):
        (folder / stray).write_bytes(b"x")
    assert len(decode_video(folder)) == 3


def test_zero_byte_frames_spoil_the_clip(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", drawn(4))
    (folder / "images2.png").write_bytes(b"")
    (folder / "images3.png").write_bytes(b"")
    with pytest.raises(VideoError, match=r"2 of 4 frames have zero bytes, first images2\.png"):
        decode_video(folder)


def test_an_empty_folder_and_damaged_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="no frames"):
        decode_video(tmp_path / "empty")
    complete = encode_png(drawn(1)[0])
    with pytest.raises(VideoError, match="damaged image"):
        decode_image(complete[: len(complete) // 2])
    with pytest.raises(VideoError, match=r"^not an image: neither PNG nor JPEG$"):
        decode_image(b"GIF89a nothing")


def test_a_header_that_declares_a_huge_image_is_refused_unread() -> None:
    png = bytearray(encode_png(drawn(1)[0]))
    png[16:24] = (100_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    with pytest.raises(VideoError, match=r"100000 x 100000|decompression bomb"):
        read_image_size(bytes(png))


def test_real_phoenix_frames(realdata: Path) -> None:
    (folder,) = (
        realdata / "PHOENIX-2014-T-release-v3/PHOENIX-2014-T/features/fullFrame-210x260px/dev"
    ).iterdir()
    video = read_video(folder)
    assert video.frames.shape == (2, 260, 210, 3)
    assert video.frames.std() > 20
    assert decode_video(folder, size=224).shape == (2, 224, 224, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 16_000), (16_000, 1)])
def test_a_picture_that_cannot_be_scaled_is_a_damaged_video(width: int, height: int, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", np.zeros((1, height, width, 3), np.uint8))
    with pytest.raises(VideoError, match=f"{width} x {height}|pixels"):
        decode_video(folder, size=96)
