"""Tests of cutting recordings: windows and pauses at known times, real videos, and little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from signllm.data.video.decoding import decode_video, encode_h264
from signllm.data.video.recording_pieces import CutRule, Pauses, Windows, cut_into_pieces, motion_energies
from signllm.data.video.timed_frames import TimedFrames, join_chunks, read_timed_chunks
from signllm.data.video.video_error import VideoError
from signllm.errors import UsageError

REAL = Path(__file__).resolve().parents[3] / "shared" / "realdata" / "clips"
FPS = 25


def still(frames: int) -> np.ndarray:
    return np.full((frames, 48, 48, 3), 90, np.uint8)


def signing(frames: int, *, seed: int = 0) -> np.ndarray:
    """Return frames of a bright hand that moves by some pixels in every frame."""
    video = still(frames)
    places = np.cumsum(np.random.default_rng(seed).integers(3, 6, (frames, 2)), axis=0) % 36
    for frame, (y, x) in zip(video, places, strict=True):
        frame[y : y + 10, x : x + 10] = 240
    return video


def recording() -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Return a recording with signing at three times, and the begin and end of each in seconds."""
    parts = [still(20), signing(50), still(30), signing(30, seed=1), still(20), signing(30, seed=2)]
    return np.concatenate(parts), [(0.8, 2.8), (4.0, 5.2), (6.0, 7.2)]


def cut_up(source: Path | np.ndarray, cut: CutRule, longest: int = 300) -> list[TimedFrames]:
    return list(cut_into_pieces(read_timed_chunks(source, size=48), cut, longest=longest))


def spans(pieces: list[TimedFrames]) -> list[tuple[float, float]]:
    return [(float(item.edges_s[0]), float(item.edges_s[-1])) for item in pieces]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "recording.mp4"
    path.write_bytes(encode_h264(recording()[0], float(FPS)))
    return path


@pytest.mark.parametrize("in_a_file", [False, True])
def test_pauses_separate_what_is_signed(file: Path, in_a_file: bool) -> None:
    frames, expected = recording()
    result = cut_up(file if in_a_file else frames, Pauses())
    assert len(result) == len(expected)
    for (begin, end), (signed, ended) in zip(spans(result), expected, strict=True):
        assert begin == pytest.approx(max(0, signed - 0.2), abs=2 / FPS)  # the margin
        assert end == pytest.approx(min(7.2, ended + 0.2), abs=2 / FPS)
        assert begin <= signed
        assert end >= ended - 1e-6
    for item, (begin, end) in zip(result, spans(result), strict=True):
        assert len(item.frames) == round((end - begin) * FPS)


def test_signing_without_a_pause_is_cut_before_it_is_too_long() -> None:
    result = cut_up(np.concatenate([signing(40), still(5), signing(60, seed=1)]), Pauses(), longest=60)
    assert [len(item.frames) <= 60 for item in result] == [True] * len(result)
    assert spans(result)[0][1] == spans(result)[1][0]
    assert 40 <= len(result[0].frames) <= 46  # where it rests a moment
    assert sum(len(item.frames) for item in result) == 105


def test_a_flicker_is_no_signing_and_a_still_recording_has_no_piece() -> None:
    flicker = np.concatenate([still(30), signing(3), still(30)])
    assert cut_up(flicker, Pauses()) == []
    assert len(cut_up(flicker, Pauses(least=0.1))) == 1
    assert cut_up(still(60), Pauses()) == []


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (Windows(seconds=1.0), [(0, 1), (1, 2), (2, 2.4)]),
        (Windows(seconds=1.0, overlap=0.5), [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.4)]),
        (Windows(seconds=1.2), [(0, 1.2), (1.2, 2.4)]),
        (Windows(seconds=9.0), [(0, 2.4)]),
        (Windows(seconds=0.1), [(n / 10, n / 10 + 0.1) for n in range(24)]),
    ],
)
def test_windows_cover_a_recording(cut: Windows, expected: list[tuple[float, float]]) -> None:
    frames = signing(60)
    result = cut_up(frames, cut)
    assert spans(result) == [pytest.approx(pair, abs=1 / FPS) for pair in expected]
    for item, (begin, _) in zip(result, spans(result), strict=True):
        assert np.array_equal(item.frames[0], frames[round(begin * FPS)])
    if not cut.overlap:
        assert np.array_equal(np.concatenate([item.frames for item in result]), frames)


def test_a_long_recording_is_never_completely_in_memory() -> None:
    """Five minutes of 48 x 48 are 52 MB; a window of them is 0.9 MB."""

    def runs() -> Iterator[TimedFrames]:
        for at in range(0, 300 * FPS, 50):
            yield TimedFrames(signing(50), np.arange(at, at + 51) / FPS)

    for cut in (Windows(seconds=5.0, overlap=1.0), Pauses()):
        tracemalloc.start()
        count = sum(1 for _ in cut_into_pieces(runs(), cut, longest=125))
        kept = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count >= 60
        assert kept < 8e6


@pytest.mark.skipif(not REAL.is_dir(), reason="the real clips are not here")
def test_a_real_sentence_is_one_piece_with_the_frames_and_times_of_the_decoder() -> None:
    for path in sorted(REAL.glob("*.gif")):
        complete = join_chunks(read_timed_chunks(path, size=96))
        assert np.array_equal(complete.frames, decode_video(path, size=96))
        assert (np.diff(complete.edges_s) > 0).all()
        (piece,) = cut_into_pieces(read_timed_chunks(path, size=96), Pauses(), longest=300)
        assert len(piece.frames) >= 0.85 * len(complete.frames)
        assert np.median(motion_energies(complete)) > Pauses().energy


def test_times_count_from_the_start_of_the_file(file: Path, tmp_path: Path) -> None:
    from PIL import Image

    complete = join_chunks(read_timed_chunks(file, size=48))
    assert complete.edges_s == pytest.approx(np.arange(181) / FPS)
    for number, frame in enumerate(complete.frames[:70]):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    pictured = join_chunks(read_timed_chunks(tmp_path, size=48, fps=10))
    assert pictured.edges_s == pytest.approx(np.arange(71) / 10)
    assert np.array_equal(pictured.frames, complete.frames[:70])


def test_a_video_beyond_the_limits_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signllm.data.video.pictures.MAX_FRAMES", 40)
    with pytest.raises(VideoError, match="more than 40 frames"):
        join_chunks(read_timed_chunks(signing(50), size=48))
    assert len(cut_up(signing(50), Windows(seconds=1.0))) == 2


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Windows, {"seconds": 0.0}),
        (Windows, {"seconds": 2.0, "overlap": 2.0}),
        (Windows, {"seconds": 2.0, "overlap": -1.0}),
        (Pauses, {"still": 0.0}),
        (Pauses, {"margin": 0.4}),
        (Pauses, {"energy": 0.0}),
    ],
)
def test_cuts_that_cannot_work_are_refused(kind: type, settings: dict[str, float]) -> None:
    with pytest.raises(UsageError) as raised:
        kind(**settings)
    assert raised.value.remedy
