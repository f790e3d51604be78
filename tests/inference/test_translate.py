"""The translator and the evaluation agree, for files, folders of frame pictures and arrays."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import signllm
from signllm.data.video.decoding import encode_h264
from signllm.data.video.recording_pieces import Pauses, Windows
from signllm.errors import UsageError
from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.inference.translate import Translator
from signllm.inference.translation import Translation, compute_word_times
from signllm.inference.video_input import scale_and_crop
from signllm.models.language_model.generation import GenerationConfig
from tests.inference import trained


@pytest.fixture(scope="module")
def translator(trained_folder: Path) -> Translator:
    return signllm.load(trained_folder / "run")


def test_files_translate_as_in_evaluation(
    translator: Translator, trained_folder: Path, run: Path, shards: Path
) -> None:
    evaluate(run, shards, "test", EvaluateConfig(batch_size=1))
    lines = [json.loads(line) for line in (run / "hypotheses.test.jsonl").read_text().splitlines()]
    for line in lines:
        translation = translator.translate(
            trained_folder / "videos" / f"{line['id']}.mp4", language="English"
        )
        assert translation.text == line["hypothesis"]
        assert list(translation.characters) == line["characters"]
        assert list(translation.words) == line["words"]
        assert translation.seconds > 0


def test_arrays_and_frame_folders_translate_as_their_file(
    translator: Translator, trained_folder: Path, shards: Path, tmp_path: Path
) -> None:
    frames = trained.decode_sample(shards, "test", "clip2")
    expected = translator.translate(str(trained_folder / "videos" / "clip2.mp4"))
    assert translator.translate(frames).characters == expected.characters
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number:04d}.png")
    assert translator.translate(tmp_path).text == expected.text


@pytest.mark.parametrize("times", [2, 3])
def test_a_video_at_a_multiple_of_the_rate_is_the_same_video(
    translator: Translator, shards: Path, tmp_path: Path, times: int
) -> None:
    """Each frame twice at twice the rate: a file, and an array of that rate."""
    at_25 = Translator(
        translator.model, replace(translator.config, data=replace(translator.config.data, fps=25.0))
    )
    frames = trained.decode_sample(shards, "test", "clip2")
    once, often = tmp_path / "once.mp4", tmp_path / "often.mp4"
    once.write_bytes(encode_h264(frames, 25, crf=0))
    often.write_bytes(encode_h264(frames.repeat(times, axis=0), 25 * times, crf=0))
    expected, repeated = at_25.translate([once, often])
    assert repeated.characters == expected.characters
    assert repeated.text == expected.text
    assert repeated.end_s == pytest.approx(expected.end_s, abs=0.001)
    assert (
        translator.translate(often).characters != expected.characters
    )  # a run without a frame rate reads every frame
    array = at_25.translate(frames.repeat(times, axis=0), fps=25 * times)
    assert array.characters == at_25.translate(frames).characters


def test_loading_a_run_without_a_frame_rate_warns(
    trained_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signllm.load(trained_folder / "run")
    assert sum("frame rate" in record.getMessage() for record in caplog.records) == 1


def test_arrays_of_another_size_are_scaled_and_cropped(translator: Translator) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (1, 96, 64, 3), dtype=np.uint8).repeat(20, axis=0)
    assert len(translator.translate(frames).characters) == 2
    assert scale_and_crop(frames, 32).shape == (20, 32, 32, 3)


def test_the_language_is_that_of_training_unless_asked(translator: Translator, trained_folder: Path) -> None:
    video = trained_folder / "videos" / "clip0.mp4"
    usual, other = translator.translate(video), translator.translate(video, language="south")
    assert usual.text == translator.translate(video, language="north").text
    assert usual.characters == other.characters
    assert usual.text != other.text  # the prompt is read


def test_a_video_shorter_than_a_character_still_translates(translator: Translator) -> None:
    assert len(translator.translate(np.zeros((1, 32, 32, 3), np.uint8)).characters) == 1


@pytest.mark.parametrize(
    "frames", [np.zeros((5, 32, 32)), np.zeros((0, 32, 32, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_arrays_of_another_type_or_shape_are_rejected(translator: Translator, frames: np.ndarray) -> None:
    with pytest.raises(UsageError, match="frames are") as raised:
        translator.translate(frames)
    assert "uint8" in str(raised.value.remedy)


def test_files_that_are_no_video_are_rejected(translator: Translator, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    for path, problem in ((tmp_path / "none.mp4", "no such video"), (broken, "cannot be read")):
        with pytest.raises(UsageError, match=problem) as raised:
            translator.translate(path)
        assert str(path) in str(raised.value.where)
        assert raised.value.remedy


def test_only_finished_runs_are_loaded(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        signllm.load(tmp_path / "nowhere")
    (run / "words.json").unlink()
    with pytest.raises(UsageError, match="word codebook"):
        signllm.load(run)


def are_equal(first: Translation, second: Translation) -> bool:
    """Return whether two translations are equal except for rounding and wall-clock time."""
    names = ("text", "characters", "words", "word_times", "start_s", "end_s")
    return all(getattr(first, name) == getattr(second, name) for name in names) and (
        first.score == pytest.approx(second.score, rel=1e-4)
    )


def test_videos_translate_alone_as_in_batches_of_any_size(
    translator: Translator, trained_folder: Path, shards: Path
) -> None:
    videos = [trained_folder / "videos" / f"clip{place}.mp4" for place in range(7)]
    frames = trained.decode_sample(shards, "test", "clip4")
    generation = GenerationConfig(max_new_tokens=8, temperature=1.5, n_best=3)
    for settings in (None, generation):
        alone = [translator.translate(video, generation=settings) for video in videos]
        for batch in (1, 3, 8):
            translations = translator.translate([*videos, frames], generation=settings, batch=batch)
            assert all(map(are_equal, translations, [*alone, alone[4]]))
            texts = [[c.text for c in translation.candidates] for translation in translations[:7]]
            assert texts == [[c.text for c in translation.candidates] for translation in alone]
    assert translator.translate([]) == []


def test_frames_may_come_with_channels_first_and_as_tensors(
    translator: Translator, shards: Path, trained_folder: Path
) -> None:
    frames = trained.decode_sample(shards, "test", "clip2")
    expected = translator.translate(trained_folder / "videos" / "clip2.mp4")
    channels_first = frames.transpose(0, 3, 1, 2)
    for video in (channels_first, torch.from_numpy(frames), torch.from_numpy(channels_first.copy())):
        assert are_equal(translator.translate(video), expected)
    for ambiguous in (np.zeros((20, 3, 8, 3), np.uint8), np.zeros((20, 8, 8, 4), np.uint8)):
        with pytest.raises(UsageError, match="frames are uint8"):
            translator.translate(ambiguous)
    with pytest.raises(UsageError, match="fps is 0"):
        translator.translate(frames, fps=0)


def test_words_have_times_within_the_video(
    translator: Translator, trained_folder: Path, shards: Path
) -> None:
    translation = translator.translate(trained_folder / "videos" / "clip2.mp4")  # 37 frames at 25 per second
    assert (translation.start_s, translation.end_s) == pytest.approx((0.0, 1.48))
    assert len(translation.word_times) == len(translation.words)
    assert translation.word_times[0][0] == pytest.approx(4 / 25)
    assert translation.word_times[-1][1] == pytest.approx((4 * len(translation.characters) + 4) / 25)
    ends = [end for _, end in translation.word_times]
    begins = [begin for begin, _ in translation.word_times]
    for end, begin in zip(ends, begins[1:], strict=False):
        assert begin in (
            end,
            begins[ends.index(end)],
        )  # each word begins where the previous one ends, unless it is s0
    slow = translator.translate(trained.decode_sample(shards, "test", "clip2"), fps=12.5)
    assert slow.word_times == pytest.approx(np.array(translation.word_times) * 2)


def test_the_time_of_a_word_is_that_of_its_characters() -> None:
    """Characters 0 and 1 form the first word; the third word consists of the "slowing down" token only."""
    times = compute_word_times([0, 0, 1, 3], 4, [0.0, 1.0, 2.0, 3.0, 4.0])
    assert times == ((0.0, 2.0), (2.0, 3.0), (2.0, 3.0), (3.0, 4.0))


def test_a_recording_is_translated_as_its_pieces(
    translator: Translator, shards: Path, tmp_path: Path
) -> None:
    """The recording consists of clips with a still picture between them, so their times are known exactly."""
    clips = [trained.decode_sample(shards, "test", f"clip{place}") for place in (2, 0, 4)]
    parts, times, start = [], [], 0
    for clip in clips:
        times.append((start / 25, (start + len(clip)) / 25))
        parts += [clip, clip[-1:].repeat(25, axis=0)]
        start += len(clip) + 25
    recording = np.concatenate(parts)
    path = tmp_path / "recording.mp4"
    path.write_bytes(encode_h264(recording.repeat(6, axis=1).repeat(6, axis=2), 25.0))
    pieces = translator.translate_recording(path, Pauses(margin=0.0))
    assert len(pieces) == len(clips)
    for piece, (begin, end) in zip(pieces, times, strict=True):
        # the square rests for five frames between its jumps, so the last jump may come that much earlier
        assert piece.start_s == pytest.approx(begin, abs=6 / 25)
        assert piece.end_s == pytest.approx(end, abs=6 / 25)
        assert all(piece.start_s <= a <= b <= piece.end_s for a, b in piece.word_times)
    windows = translator.translate_recording(recording, Windows(seconds=1.6), batch=2)
    assert [window.start_s for window in windows] == pytest.approx([1.6 * n for n in range(len(windows))])
    assert windows[-1].end_s == pytest.approx(len(recording) / 25)
    for number, window in enumerate(windows):
        alone = translator.translate(recording[40 * number : 40 * (number + 1)])
        assert (window.text, window.words) == (alone.text, alone.words)
        assert window.word_times == pytest.approx(np.array(alone.word_times) + 1.6 * number)
    with pytest.raises(UsageError, match="nothing moves"):
        translator.translate_recording(recording[:1].repeat(60, axis=0), Pauses())


def test_a_subsampled_video_is_reported_once(
    translator: Translator, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = trained.decode_sample(shards, "test", "clip6")  # 57 frames, and the model was trained on 45
    with caplog.at_level(logging.WARNING):
        translation = translator.translate([long, long])[0]
    (message,) = [record.getMessage() for record in caplog.records if "57 frames" in record.getMessage()]
    assert "at most 45" in message
    assert "--windows" in message
    assert translation.end_s == pytest.approx(57 / 25)
    assert (translation.frames, translation.frames_read, len(translation.characters)) == (57, 45, 9)
