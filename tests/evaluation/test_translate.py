"""The translator gives what evaluation gives, from files, folders of frames and arrays alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import signllm
from signllm.errors import UsageError
from signllm.evaluation.evaluate import EvaluateConfig, evaluate
from signllm.evaluation.footage import fitted
from signllm.evaluation.translate import Translator
from tests.evaluation import trained


@pytest.fixture(scope="module")
def translator(made: Path) -> Translator:
    return signllm.load(made / "run")


def test_files_translate_as_in_evaluation(
    translator: Translator, made: Path, run: Path, shards: Path
) -> None:
    evaluate(run, shards, "test", EvaluateConfig(batch_size=1))
    lines = [json.loads(line) for line in (run / "hypotheses.test.jsonl").read_text().splitlines()]
    for line in lines:
        found = translator.translate(made / "videos" / f"{line['id']}.mp4", language="English")
        assert found.text == line["hypothesis"]
        assert list(found.characters) == line["characters"]
        assert list(found.words) == line["words"]
        assert found.seconds > 0


def test_arrays_and_frame_folders_translate_as_their_file(
    translator: Translator, made: Path, shards: Path, tmp_path: Path
) -> None:
    frames = trained.pixels(shards, "test", "clip2")
    expected = translator.translate(str(made / "videos" / "clip2.mp4"))
    assert translator.translate(frames).characters == expected.characters
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number:04d}.png")
    assert translator.translate(tmp_path).text == expected.text


def test_arrays_of_another_size_are_scaled_and_cropped(translator: Translator) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (1, 96, 64, 3), dtype=np.uint8).repeat(20, axis=0)
    assert len(translator.translate(frames).characters) == 2
    assert fitted(frames, 32).shape == (20, 32, 32, 3)


def test_the_language_is_that_of_training_unless_asked(translator: Translator, made: Path) -> None:
    video = made / "videos" / "clip0.mp4"
    usual, other = translator.translate(video), translator.translate(video, language="south")
    assert usual.text == translator.translate(video, language="north").text
    assert usual.characters == other.characters
    assert usual.text != other.text  # the prompt is read


def test_a_video_shorter_than_a_character_still_translates(translator: Translator) -> None:
    assert len(translator.translate(np.zeros((1, 32, 32, 3), np.uint8)).characters) == 1


@pytest.mark.parametrize(
    "frames", [np.zeros((5, 32, 32)), np.zeros((0, 32, 32, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_arrays_that_are_no_video_are_refused(translator: Translator, frames: np.ndarray) -> None:
    with pytest.raises(UsageError, match="frames are") as raised:
        translator.translate(frames)
    assert "uint8" in str(raised.value.remedy)


def test_files_that_are_no_video_are_refused(translator: Translator, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    for path, said in ((tmp_path / "none.mp4", "no such video"), (broken, "cannot be read")):
        with pytest.raises(UsageError, match=said) as raised:
            translator.translate(path)
        assert str(path) in str(raised.value.where)
        assert raised.value.remedy


def test_only_finished_runs_are_loaded(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        signllm.load(tmp_path / "nowhere")
    (run / "words.json").unlink()
    with pytest.raises(UsageError, match="word codebook"):
        signllm.load(run)
