"""Validation on ``dev``: a score that selects the checkpoint, and the text of another video for every one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from signllm.config import FinetuneConfig
from signllm.data.loading.mixture import open_mixture
from signllm.data.shards.sample_table import ShardSample
from signllm.errors import UsageError
from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.metrics.hypotheses import Hypothesis
from signllm.stages import dev_validation
from signllm.stages.dev_validation import other_texts
from signllm.stages.finetune import finetune
from signllm.stages.pretrain import pretrain
from signllm.training.checkpoint import best_checkpoint, last_checkpoint, read_state
from signllm.training.engine import TrainingConfig
from tests.stages import path


def validated(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["validate/chrf"] for line in lines if "validate/chrf" in line}


def trained(config: FinetuneConfig, composed: Path, run: Path) -> Path:
    finetune(config, run=run, init=composed / "pretrain", dataset=open_mixture(composed / "shards"))
    return run


@pytest.fixture(scope="module")
def run(composed: Path) -> Path:
    return trained(path.selected_config(composed / "llm"), composed, composed / "selected")


def test_the_highest_score_of_dev_selects_and_evaluation_finds_it_again(run: Path, composed: Path) -> None:
    scores = validated(run)
    assert list(scores) == [2, 4, 6, 8, 9]
    assert len(set(scores.values())) > 1
    best = read_state(last_checkpoint(run)).best  # type: ignore[arg-type]
    assert best is not None
    assert (best["name"], best["value"]) == ("chrf", max(scores.values()))
    assert read_state(best_checkpoint(run)).step == max(scores, key=lambda step: (scores[step], -step))
    for checkpoint, step in (("best", read_state(best_checkpoint(run)).step), ("last", 9)):
        result = evaluate(run, composed / "shards", "dev", EvaluateConfig(checkpoint=checkpoint, bootstrap=0))
        assert result["chrf"] == pytest.approx(scores[step])


def test_two_ranks_under_zero3_translate_every_video_once(composed: Path) -> None:
    [parted] = path.on_ranks(composed, composed / "llm", "selected-zero3", processes=2)
    result = evaluate(parted, composed / "shards", "dev", EvaluateConfig(bootstrap=0))
    assert validated(parted)[9] == pytest.approx(result["chrf"])


def test_every_epoch_is_validated_unless_something_else_is_asked_for(composed: Path, tmp_path: Path) -> None:
    assert TrainingConfig(epochs=1).validate_every is None
    config = path.selected_config(composed / "llm", validate_every=None, steps=4)
    trained(config, composed, tmp_path)
    assert list(validated(tmp_path)) == [3, 4]
    trained(replace(config, training=replace(config.training, steps=None)), composed, tmp_path)
    assert list(validated(tmp_path)) == [3, 4, 6, 9]


def test_a_run_goes_on_by_another_value(composed: Path, tmp_path: Path) -> None:
    config = path.selected_config(composed / "llm", steps=4, epochs=None)
    trained(config, composed, tmp_path)
    training = replace(config.training, keep_best="loss", validate_every=1, steps=5)
    trained(replace(config, training=training), composed, tmp_path)
    best = read_state(last_checkpoint(tmp_path)).best  # type: ignore[arg-type]
    assert best is not None
    assert (best["name"], best["checkpoint"]) == ("loss", "step-00000005")


def test_what_needs_dev_is_refused_without_it_before_anything_is_written(
    composed: Path, tmp_path: Path
) -> None:
    dataset = open_mixture(path.write_videos(tmp_path, lengths={"train": (26, 31)}))
    by_score = path.selected_config(composed / "llm")
    with pytest.raises(UsageError, match=r"chrf.* no dev split"):
        finetune(by_score, run=tmp_path / "run", init=composed / "pretrain", dataset=dataset)
    patient = replace(path.PRETRAIN, training=replace(path.TRAINING, patience=1))
    with pytest.raises(UsageError, match=r"patience 1.* no dev split"):
        pretrain(patient, run=tmp_path / "run", dataset=dataset)
    assert not (tmp_path / "run").exists()


def test_every_video_meets_the_text_of_another_of_its_language() -> None:
    fields = {"signer": "", "frames": 14, "fps": 25.0, "width": 8, "height": 8, "shard": 0, "members": {}}
    languages = ("German", "English", "German", "English", "German", "Dutch")
    samples = [
        ShardSample(key=str(n), id=str(n), text=f"{language} {n}", language=language, **fields)
        for n, language in enumerate(languages)
    ]
    result = other_texts(samples)
    assert sorted(result.values()) == sorted(sample.text for sample in samples)
    assert all(result[sample.id].startswith(sample.language) for sample in samples)
    assert [sample.language for sample in samples if result[sample.id] == sample.text] == ["Dutch"]


@pytest.mark.parametrize(
    ("language", "written", "reference"),
    [("ja_JP", "今日は学校へ行きます", "今日は学校に行きます"), ("", "我们去学校吃饭", "我们去学校")],
)
def test_the_value_that_selects_a_checkpoint_is_no_zero_without_spaces(
    language: str, written: str, reference: str
) -> None:
    pair = Hypothesis(
        place=0, id="a", hypothesis=written, reference=reference, characters=[], words=[], language=language
    )
    assert dev_validation._score("bleu4", [pair]) > 30
