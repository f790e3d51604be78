"""The samples that TensorBoard shows: read back from its own files, alike on one rank and on two."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from signllm.data.loading.mixture import open_mixture
from signllm.data.loading.sample_source import VideoSource
from signllm.experiments.mmd_over_training import read_alignment_curves
from signllm.stages.finetune import finetune
from signllm.stages.pretrain import pretrain
from signllm.stages.sample_logger import SampleLogger, _word_spans
from signllm.training.checkpoint import load_weights
from signllm.training.training_log import read_log
from tests.models import parts
from tests.stages import path

SHOWN = ("dev/0", "dev/1")


def board(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board_events = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0, "tensors": 0})
    board_events.Reload()
    return board_events


def table(run: Path) -> str:
    (event,) = board(run).Tensors("finetune/translations/text_summary")
    return event.tensor_proto.string_val[0].decode()


@pytest.fixture(scope="module")
def run(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    board_events = tmp_path_factory.mktemp("shown") / "run"
    finetune(
        path.shown_config(composed / "llm", deepspeed="zero3"),
        run=board_events,
        init=composed / "pretrain",
        dataset=open_mixture(composed / "shards"),
    )
    return board_events


def test_videos_use_and_translations_are_shown_at_the_validation(run: Path) -> None:
    from PIL import Image

    board_events = board(run)
    assert board_events.Tags()["images"] == [f"finetune/videos/{id}" for id in SHOWN]
    for id in SHOWN:
        (event,) = board_events.Images(f"finetune/videos/{id}")
        assert event.step == 3
        picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        assert picture.shape[2] == 3
        assert len(np.unique(picture)) > 50  # frames, not white paper
    head, rule, *rows = table(run).splitlines()
    assert (head, rule) == ("| video | reference | hypothesis |", "| --- | --- | --- |")
    references = [row.split(" | ")[1] for row in rows]
    assert [row.split(" | ")[0] for row in rows] == [f"| {id}" for id in SHOWN]
    assert references == list(parts.TEXTS[:2])
    codes, words = (
        board_events.Histograms(f"finetune/{kind} use")[0].histogram_value for kind in ("code", "word")
    )
    assert codes.num == 8
    assert codes.sum == pytest.approx(8)  # 1 is an even share
    assert words.num > 8 + 1


def test_looking_changes_nothing_that_is_learnt(run: Path, composed: Path, tmp_path: Path) -> None:
    config = path.finetune_config(composed / "llm", deepspeed="zero3", tensorboard=True, show=0)
    finetune(config, run=tmp_path, init=composed / "pretrain", dataset=open_mixture(composed / "shards"))
    assert board(tmp_path).Tags()["images"] == []
    seen, unseen = load_weights(run), load_weights(tmp_path)
    assert all(torch.equal(tensor, unseen[name]) for name, tensor in seen.items())


def test_two_ranks_show_what_one_shows(run: Path, composed: Path) -> None:
    (both,) = path.on_ranks(composed, composed / "llm", "shown-zero3", processes=2)
    assert table(both) == table(run)
    single, two = (board(r).Histograms("finetune/code use")[0].histogram_value for r in (run, both))
    assert list(two.bucket) == pytest.approx(list(single.bucket))


def test_two_ranks_are_as_near_to_the_text_as_one(run: Path, composed: Path) -> None:
    (both,) = path.on_ranks(composed, composed / "llm", "shown-zero3", processes=2)
    single, two = read_alignment_curves([run, both])
    assert single.steps == two.steps == (6, 9)  # the last with a frozen encoder, and the last
    assert two.mmd == pytest.approx(single.mmd, rel=1e-4)
    assert two.sim == pytest.approx(single.sim, rel=1e-4)
    logs = [[*read_log(board_events / "frozen"), *read_log(board_events)] for board_events in (run, both)]
    by_one_rank, by_two_ranks = (
        [line["validate/l_sim_shuffled"] for line in log if "validate/l_sim_shuffled" in line] for log in logs
    )
    assert len(by_one_rank) == 2
    assert by_two_ranks == pytest.approx(by_one_rank, rel=1e-4)


def test_stage_1_shows_characters_and_what_cannot_be_read_stops_no_run(
    composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = VideoSource.load
    monkeypatch.setattr(logging.getLogger("signllm"), "propagate", True)

    def fail(self: VideoSource, index: int, **drawn: object) -> object:
        if self.split.name == "dev" and self.config.cache_gb == 0.0:
            raise ConnectionError("the server is gone")
        return load(self, index, **drawn)

    from dataclasses import replace

    shown = replace(path.PRETRAIN, training=replace(path.TRAINING, steps=2, tensorboard=True, show=1))
    pretrain(shown, run=tmp_path / "seen", dataset=open_mixture(composed / "shards"))
    assert board(tmp_path / "seen").Tags()["images"] == ["pretrain/videos/dev/0"]
    monkeypatch.setattr(VideoSource, "load", fail)
    outcome = pretrain(shown, run=tmp_path / "unseen", dataset=open_mixture(composed / "shards"))
    assert outcome.step == 2
    assert board(tmp_path / "unseen").Tags()["images"] == []
    assert board(tmp_path / "unseen").Tags()["histograms"] == ["pretrain/code use"]
    assert "the server is gone" in caplog.text


def test_without_dev_the_first_of_train_are_shown(tmp_path: Path) -> None:
    shards = path.write_videos(tmp_path, lengths={"train": (33, 29)})
    assert SampleLogger(path.stage_context(tmp_path, shards), path.DATA, 1).split.name == "train"


def test_words_stand_over_the_characters_that_they_took() -> None:
    board_events = _word_spans([9, 8, 7], [0, 0, 2, 2, 2])  # the second has none: it is s0 by itself
    assert [(word.name, word.start, word.stop) for word in board_events] == [("w9", 0, 2), ("w7", 2, 5)]
