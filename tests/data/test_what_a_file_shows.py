"""What a video file shows is the same wherever it is read, and what players show.

Each input goes through every way into the program: decoding, the three encodings of shards, the input of
translate and serve, a clip cut by time. Where the ``ffmpeg`` command is installed it is asked too.
"""

from __future__ import annotations

import io
import math
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from signllm.data.shards.sample_encoding import EncodeConfig, EncodedSample, encode_sample
from signllm.data.shards.writing import ShardConfig, preview_shards, write_shards
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample, TimeSpan
from signllm.data.video import stream as stream_module
from signllm.data.video.decoding import decode_to_rgb, decode_video, read_video
from signllm.data.video.recording import read_time_span
from signllm.data.video.stored_frames import decode_stored_frames
from signllm.data.video.timed_frames import join_chunks, read_timed_chunks
from signllm.data.video.tone_mapping import HLG, PQ, map_tones
from signllm.data.video.video_error import VideoError

from .conftest import drawn
from .made_videos import (
    ORIENTATIONS,
    browser_webm,
    disc,
    hidden_start,
    numbered,
    numbers_of,
    oriented,
    roundness,
    shifted,
    shown_for,
    video,
    webcam_times_ms,
)


def sample_of(path: Path, encode: str, **cut: float) -> EncodedSample:
    clip = SourceSample(id="clip", video=path, text="text", split="train", **cut)
    sample = encode_sample(clip, EncodeConfig(encode=encode))  # type: ignore[arg-type]
    assert isinstance(sample, EncodedSample), sample
    return sample


def stored(path: Path, encode: str) -> np.ndarray:
    sample = sample_of(path, encode)
    frames = decode_stored_frames(sample.members)
    assert (sample.meta["frames"], sample.meta["height"], sample.meta["width"]) == frames.shape[:3]
    return frames


def cut_out(path: Path) -> np.ndarray:
    return read_time_span(path, TimeSpan(0, math.inf), partial(decode_to_rgb, fit=None, fps=None))[0].frames


WAYS: dict[str, Callable[[Path], np.ndarray]] = {
    "decode": decode_video,
    "h264": partial(stored, encode="h264"),
    "frames": partial(stored, encode="frames"),
    "copy": partial(stored, encode="copy"),
}
any_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def written(folder: Path, data: bytes, name: str = "clip.mp4") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def by_ffmpeg(path: Path, *options: str) -> np.ndarray:
    """Return the frames (T, H, W, 3) that the ffmpeg command outputs."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg command is not installed")
    command = ["ffmpeg", "-v", "error", "-i", str(path), *options]
    shown = subprocess.run(
        [*command, "-c:v", "ffv1", "-pix_fmt", "bgr0", "-f", "matroska", "-"], capture_output=True
    )
    assert shown.returncode == 0, shown.stderr
    with av.open(io.BytesIO(shown.stdout)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# --- edit lists ---------------------------------------------------------------------------------------------


@any_way
def test_frames_before_an_edit_list_are_not_shown(way: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    frames = way(written(tmp_path, hidden_start()))
    assert numbers_of(frames) == [*range(70, 100)]


def test_frames_behind_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    path = written(tmp_path, shown_for(hidden_start(), 1 / 3))
    assert numbers_of(decode_video(path)) == [*range(70, 80)]
    assert sample_of(path, "copy").meta["frames"] == 10


def test_a_delay_hides_nothing_and_a_cut_counts_from_the_first_frame(tmp_path: Path) -> None:
    path = written(tmp_path, shifted(video(numbered(40)), 1.0))
    assert numbers_of(decode_video(path)) == [*range(40)]
    cut = read_time_span(path, TimeSpan(0.4, 0.8), partial(decode_to_rgb, fit=None, fps=None))[0]
    assert numbers_of(cut.frames) == [*range(10, 20)]


def test_a_cut_and_a_translation_count_times_from_the_first_frame_shown(tmp_path: Path) -> None:
    path = written(tmp_path, hidden_start())
    cut = sample_of(path, "frames", start_s=0.4, end_s=0.8)
    assert numbers_of(decode_stored_frames(cut.members)) == [*range(80, 90)]
    timed = join_chunks(read_timed_chunks(path, size=64))
    assert numbers_of(timed.frames) == [*range(70, 100)]
    np.testing.assert_allclose(timed.edges_s, np.arange(31) / 25, atol=1e-6)


@pytest.mark.parametrize("way", ["whole", "edited"])
def test_a_file_of_which_most_is_missing_is_refused_all_the_same(way: str, tmp_path: Path) -> None:
    data = video(drawn(100)) if way == "whole" else shifted(video(drawn(200), options={"g": "250"}), -4)
    path, first = tmp_path / "first.mp4", tmp_path / "plain.mp4"
    first.write_bytes(data)
    with av.open(str(first)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        copied = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                file.mux(packet)
    begin = path.read_bytes()
    at = begin.index(b"mdat")
    path.write_bytes(begin[: at + (len(begin) - at) * (6 if way == "edited" else 3) // 10])
    with pytest.raises(VideoError):
        decode_video(path)


def test_the_start_of_a_transport_stream_is_not_zero(tmp_path: Path) -> None:
    data = video(numbered(30), container="mpegts", options={"bf": "3", "crf": "4"})
    path = written(tmp_path, data, "00001.MTS")
    timed = join_chunks(read_timed_chunks(path, size=64))
    assert numbers_of(timed.frames) == [*range(30)]
    assert (timed.edges_s[0], timed.edges_s[-1]) == pytest.approx((0, 1.2), abs=1e-4)
    cut = sample_of(path, "frames", start_s=0.4, end_s=0.8)
    assert numbers_of(decode_stored_frames(cut.members)) == [*range(10, 20)]


# --- orientation --------------------------------------------------------------------------------------------


def bright_corner() -> np.ndarray:
    frames = np.full((3, 64, 96, 3), 30, np.uint8)
    frames[:, :32, :48] = 220
    frames[:, :32, :16] = (250, 40, 40)  # tells a mirrored picture from a turned one
    return frames


def placed(frames: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Return a picture whose pixels are moved by the display matrix."""
    a, b, c, d = matrix
    rows, columns = np.mgrid[: frames.shape[1], : frames.shape[2]]
    new_columns, new_rows = a * columns + c * rows, b * columns + d * rows
    new_columns, new_rows = new_columns - new_columns.min(), new_rows - new_rows.min()
    shown = np.zeros((len(frames), new_rows.max() + 1, new_columns.max() + 1, 3), np.uint8)
    shown[:, new_rows, new_columns] = frames
    return shown


@any_way
@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_all_eight_orientations(
    way: Callable[[Path], np.ndarray], matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    path = written(tmp_path, oriented(video(bright_corner()), matrix))
    frames, expected = way(path), placed(bright_corner(), matrix)
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_the_ffmpeg_command_shows_the_same_orientation(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    path = written(tmp_path, oriented(video(bright_corner()), matrix))
    assert np.abs(decode_video(path).astype(int) - by_ffmpeg(path)).mean() < 3


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_translation_and_cuts_show_the_same_orientation(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    path = written(tmp_path, oriented(video(bright_corner()), matrix))
    square = join_chunks(read_timed_chunks(path, size=64)).frames
    np.testing.assert_array_equal(square, decode_video(path, size=64))
    np.testing.assert_array_equal(cut_out(path), decode_video(path))


def test_a_stored_video_is_upright_without_a_matrix(tmp_path: Path) -> None:
    mp4 = sample_of(written(tmp_path, oriented(video(bright_corner()), (-1, 0, 0, 1))), "h264").members["mp4"]
    with av.open(io.BytesIO(mp4)) as container:
        frame = next(container.decode(video=0))
        assert "DISPLAYMATRIX" not in frame.side_data
        assert container.streams.video[0].sample_aspect_ratio in (None, 1)


def test_an_orientation_inside_the_stream_holds_for_every_part(tmp_path: Path) -> None:
    """Only the first frame of an H.264 stream must state its transfer function."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg command is not installed")
    frames = np.repeat(bright_corner()[:1], 20, axis=0)
    plain, turned = written(tmp_path, video(frames)), tmp_path / "turned.mp4"
    bits = "h264_metadata=display_orientation=insert:rotate=90:flip=horizontal"
    command = ["ffmpeg", "-v", "error", "-i", plain, "-c", "copy", "-bsf:v", bits, turned]
    assert subprocess.run(command).returncode == 0
    complete = decode_video(turned)
    assert complete.shape == (20, 96, 64, 3)
    assert np.abs(complete[:1].astype(int) - by_ffmpeg(turned, "-frames:v", "1")).mean() < 3
    part = read_time_span(turned, TimeSpan(0.2, 0.6), partial(decode_to_rgb, fit=None, fps=None))[0].frames
    np.testing.assert_array_equal(part, complete[5:15])


# --- pixels that are not square -----------------------------------------------------------------------------

SHAPES = [
    ((576, 720), Fraction(64, 45), "mp4"),
    ((480, 720), Fraction(8, 9), "mpegts"),
    ((480, 720), Fraction(32, 27), "matroska"),
    ((288, 352), Fraction(12, 11), "avi"),
    ((576, 352), Fraction(128, 45), "mp4"),
]


@any_way
def test_a_disc_of_the_television_is_round(way: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    frames = way(written(tmp_path, video([disc()] * 2, aspect=Fraction(64, 45))))
    assert roundness(frames[0]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("size", "aspect", "container"), SHAPES)
def test_discs_of_many_formats_are_round(
    size: tuple[int, int], aspect: Fraction, container: str, tmp_path: Path
) -> None:
    data = video([disc(*size, aspect)] * 2, aspect=aspect, container=container)
    path = written(tmp_path, data, "clip.vob")
    for frames in (
        decode_video(path),
        stored(path, "h264"),
        join_chunks(read_timed_chunks(path, size=112)).frames,
        cut_out(path),
    ):
        assert roundness(frames[0]) == pytest.approx(1, abs=0.03)
    height, width = decode_video(path).shape[1:3]
    shown = by_ffmpeg(path, "-vf", "scale=iw*sar:ih,setsar=1")
    assert (height, width) == (shown.shape[1], pytest.approx(shown.shape[2], abs=1))


def test_the_ratio_applies_before_the_picture_is_turned(tmp_path: Path) -> None:
    path = written(tmp_path, oriented(video([disc()] * 2, aspect=Fraction(64, 45)), (0, 1, -1, 0)))
    frames = stored(path, "h264")
    assert frames.shape[1] > frames.shape[2]
    assert roundness(frames[0]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("aspect", [Fraction(1, 10_000), Fraction(10_000, 1), Fraction(6, 1)])
def test_an_absurd_ratio_is_ignored(aspect: Fraction) -> None:
    assert decode_video(video(numbered(2), aspect=aspect)).shape == (2, 64, 96, 3)


def test_the_limit_on_pixels_is_for_square_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video(numbered(2), aspect=Fraction(4, 1))
    monkeypatch.setattr("signllm.data.video.pictures.MAX_PIXELS", 2 * 64 * 96)
    with pytest.raises(VideoError, match="384 x 64"):
        decode_video(data)


def test_the_contact_sheet_shows_round_discs(tmp_path: Path) -> None:
    from PIL import Image

    path = written(tmp_path, video([disc()] * 3, aspect=Fraction(64, 45)))
    clip = SourceSample(id="clip", video=path, text="text", split="train")
    config = ShardConfig(show_progress=False, encode="copy")
    write_shards(Annotations(samples=(clip,)), tmp_path / "out", config)
    sheet = np.asarray(Image.open(preview_shards(tmp_path / "out", tmp_path / "sheet.png")))
    assert roundness(sheet[40:, 8:104]) == pytest.approx(1, abs=0.04)


# --- rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encode", ["h264", "frames"])
@pytest.mark.parametrize("seed", range(3))
def test_the_rate_of_a_browsers_webm_is_that_of_its_time_stamps(
    encode: str, seed: int, tmp_path: Path
) -> None:
    times_ms = webcam_times_ms(seed=seed)
    path = written(tmp_path, browser_webm(times_ms), "upload")
    fps = 59_000 / times_ms[-1]
    sample = sample_of(path, encode)
    assert sample.meta["fps"] == pytest.approx(fps, rel=0.001)
    assert sample.meta["frames"] / sample.meta["fps"] == pytest.approx(60 / fps, rel=0.02)
    timed = join_chunks(read_timed_chunks(path, size=64))
    assert numbers_of(timed.frames) == [*range(60)]
    assert timed.edges_s[-1] == pytest.approx(60 / fps, rel=0.001)
    cut = sample_of(path, encode, start_s=0.5, end_s=1.5)
    assert cut.meta["frames"] / cut.meta["fps"] == pytest.approx(1, abs=0.05)


def test_a_rate_that_the_header_states_wrongly(tmp_path: Path) -> None:
    times_ms = [round(1000 * number / 15) for number in range(45)]
    data = video(
        numbered(45), container="webm", codec="libvpx", fps=30, times=times_ms, tick=Fraction(1, 1000)
    )
    sample = sample_of(written(tmp_path, data, "clip.webm"), "h264")
    assert (sample.meta["frames"], sample.meta["fps"]) == (45, pytest.approx(15, rel=0.002))


@pytest.mark.parametrize("times_ms", [[0], [0, 0, 0, 0]])
def test_a_single_time_stamp_gives_no_rate(times_ms: list[int]) -> None:
    video_read = read_video(browser_webm(times_ms))
    assert (len(video_read.frames), video_read.fps) == (len(times_ms), 25)


@pytest.mark.parametrize("encode", ["h264", "frames"])
def test_a_phone_that_slows_down_in_the_dark_gets_a_steady_rate(encode: str, tmp_path: Path) -> None:
    """With 30 frames per second for one second, then 15, every frame keeps its time."""
    times_ms = [*range(0, 1000, 33), *range(1023, 3000, 66)]
    data = video(numbered(len(times_ms)), container="matroska", times=times_ms, tick=Fraction(1, 1000))
    sample = sample_of(written(tmp_path, data, "phone.mkv"), encode)
    assert sample.meta["frames"] / sample.meta["fps"] == pytest.approx(3.04, abs=0.1)
    numbers = numbers_of(decode_stored_frames(sample.members))
    begins_s = np.array(times_ms)[numbers] / 1000
    assert np.abs(begins_s - np.arange(len(numbers)) / sample.meta["fps"]).max() < 0.08


def test_a_pause_of_a_screen_recording_is_kept(tmp_path: Path) -> None:
    times_ms = [*range(0, 1000, 40), 5000, *range(5040, 6000, 40)]
    data = video(numbered(len(times_ms)), container="matroska", times=times_ms, tick=Fraction(1, 1000))
    sample = sample_of(written(tmp_path, data, "screen.mkv"), "h264")
    assert (sample.meta["fps"], sample.meta["frames"]) == (25, pytest.approx(150, abs=2))


@pytest.mark.parametrize("fps", [25, 30, 12.5])
def test_a_constant_rate_is_ffmpegs(fps: float, tmp_path: Path) -> None:
    path = written(tmp_path, video(numbered(60), fps=50))
    frames = numbers_of(read_video(path, fps=fps).frames)
    expected = numbers_of(by_ffmpeg(path, "-vf", f"fps={fps}"))
    assert len(frames) == pytest.approx(len(expected), abs=1)
    assert max(abs(item - other) for item, other in zip(frames, expected, strict=False)) <= 2


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv"])
def test_each_frame_twice_at_twice_the_rate_is_the_same_video(container: str) -> None:
    """This also holds for times in milliseconds, which cannot represent a thirtieth of a second."""
    once = video(numbered(40), container=container, fps=30)
    twice = video(numbered(40).repeat(2, axis=0), container=container, fps=60)
    for data in (once, twice):
        assert numbers_of(read_video(data, fps=30).frames) == [*range(40)]
        timed = join_chunks(read_timed_chunks(data, size=64, at_fps=30))
        assert numbers_of(timed.frames) == [*range(40)]
        np.testing.assert_allclose(timed.edges_s, np.arange(41) / 30, atol=1e-6)


def test_a_copy_of_a_varying_rate_states_the_average(tmp_path: Path) -> None:
    times_ms = [*range(0, 1000, 40), 5000, *range(5040, 6000, 40)]
    data = video(numbered(len(times_ms)), times=times_ms, tick=Fraction(1, 1000))
    sample = sample_of(written(tmp_path, data), "copy")
    assert sample.meta["frames"] == len(times_ms)
    assert sample.meta["frames"] / sample.meta["fps"] == pytest.approx(6, abs=0.2)


# --- high dynamic range -------------------------------------------------------------------------------------

GREYS = {
    HLG: {0.0: 0.0, 0.75: 203.0, 1.0: 1000.0},
    PQ: {0.0: 0.0, 0.5081: 100.0, 0.5807: 203.0, 0.7518: 1000.0},
}
"""Coded grey (0 to 1) and its light in cd/m², of ITU-R BT.2408."""


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_grey_levels_get_the_light_of_the_standard(transfer: int) -> None:
    codes = np.round(65_535 * np.array([*GREYS[transfer]])).astype(np.uint16)
    shown = map_tones(codes[None, :, None].repeat(3, axis=2), transfer, 9)[0]
    assert (np.ptp(shown.astype(int), axis=1) <= 1).all()  # grey stays grey
    assert shown[0].max() == 0
    assert shown[-1].min() == 255
    white = shown[list(GREYS[transfer].values()).index(203.0)].mean()
    assert 220 < white < 245
    if transfer == PQ:  # below the knee light is kept: 100 of 203 cd/m²
        assert shown[1].mean() == pytest.approx(255 * (100 / 203) ** (1 / 2.4), abs=2)


def high_range(transfer: int) -> bytes:
    frames = drawn(4, height=64, width=96)
    frames[:, 30:60, 20:60] = (190, 110, 90)
    tags = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    return video(frames, pixels="yuv420p10le", **tags)


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_the_ffmpeg_command_maps_tones_alike(transfer: int, tmp_path: Path) -> None:
    path = written(tmp_path, high_range(transfer))
    if (
        shutil.which("ffmpeg")
        and "zscale" not in subprocess.run(["ffmpeg", "-filters"], capture_output=True, text=True).stdout
    ):
        pytest.skip("this ffmpeg has no zscale")
    chain = (
        "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,"
        "tonemap=mobius:param=0.6:peak=4.926:desat=0,zscale=t=bt709:m=bt709:r=tv,format=yuv444p"
    )
    shown = by_ffmpeg(path, "-vf", f"{chain},scale=in_color_matrix=bt709,format=gbrp")
    assert np.abs(decode_video(path).astype(int) - shown).mean() < 6


def test_high_dynamic_range_is_counted_once_per_dataset(tmp_path: Path) -> None:
    clips = []
    for number, data in enumerate([high_range(HLG), high_range(PQ), video(numbered(4))]):
        path = written(tmp_path, data, f"clip{number}.mp4")
        clips.append(SourceSample(id=f"clip{number}", video=path, text="text", split="train"))
    config = ShardConfig(show_progress=False)
    manifest = write_shards(Annotations(samples=tuple(clips)), tmp_path / "out", config)
    assert len(manifest["warnings"]) == 1
    assert "2 of 3 videos" in manifest["warnings"][0]
    again = write_shards(Annotations(samples=tuple(clips)), tmp_path / "out", config)
    assert again["warnings"] == manifest["warnings"]
    frames = stored(tmp_path / "clip0.mp4", "h264")
    assert np.abs(frames.astype(int) - decode_video(tmp_path / "clip0.mp4")).mean() < 4


@pytest.mark.parametrize(
    "tags",
    [
        {"colorspace": 1, "color_range": 1},
        {"colorspace": 5, "color_range": 1},
        {"colorspace": 1, "color_range": 2, "pixels": "yuvj420p"},
        {"colorspace": 9, "color_range": 1, "pixels": "yuv420p10le", "color_primaries": 9, "color_trc": 14},
        {},
    ],
)
def test_matrix_and_range_are_ffmpegs(tags: dict[str, int | str], tmp_path: Path) -> None:
    frames = drawn(3, height=64, width=96)
    frames[:, 30:60, 20:60] = (200, 40, 30)
    path = written(tmp_path, video(frames, **tags))  # type: ignore[arg-type]
    shown = by_ffmpeg(path, "-sws_flags", "bicubic+accurate_rnd+full_chroma_int")
    assert np.abs(decode_video(path).astype(int) - shown).mean() < 3


# --- errors of FFmpeg that look like errors of the disk -----------------------------------------------------

FFMPEG_ERRORS = [
    av.error.PermissionError,
    av.error.FileNotFoundError,
    av.error.BlockingIOError,
    av.error.MemoryError,
    av.error.OSError,
    av.error.EOFError,
]


@pytest.mark.parametrize("error", FFMPEG_ERRORS)
@pytest.mark.parametrize("kind", ["file", "bytes", "cut"])
def test_an_error_of_the_decoder_is_a_damaged_video(
    error: type[Exception], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, video(numbered(20)))

    def refuse(*_: object) -> None:
        raise error(1, "from the decoder")

    monkeypatch.setattr(stream_module.VideoReader, "record_frame", refuse)
    cut = {"start_s": 0.1, "end_s": 0.3} if kind == "cut" else {}
    clip = SourceSample(id="clip", video=path, text="text", split="train", **cut)
    left_out = encode_sample(clip, EncodeConfig())
    assert isinstance(left_out, LeftOutSample)
    assert "FFmpeg" in left_out.reason
    with pytest.raises(VideoError):
        decode_video(path.read_bytes() if kind == "bytes" else path)


@pytest.mark.parametrize("error", FFMPEG_ERRORS)
def test_an_error_of_ffmpeg_while_opening_is_a_damaged_video(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, video(numbered(2)))

    def refuse(*_: object, **__: object) -> None:
        raise error(1, "while opening")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(VideoError):
        decode_video(path)


def test_a_file_that_may_not_be_read_stays_that_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, video(numbered(2)))
    with pytest.raises(FileNotFoundError):
        decode_video(tmp_path / "none.mp4")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        decode_video(path)
