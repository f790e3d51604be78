"""Evaluation: every video counts once, results do not depend on the ranks, and controls are correct."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from signllm.cli import main
from signllm.config import FinetuneConfig, load_config, save_config
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import open_mixture
from signllm.data.loading.pipeline import Loader, VideoSource
from signllm.data.shards.index import ShardIndex
from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.preemption import preemption_flag
from signllm.errors import UsageError
from signllm.inference import evaluate as evaluate_module
from signllm.inference.evaluate import EvaluateConfig, evaluate, make_label, measure_word_coverage
from signllm.inference.partial_translations import PartialTranslations
from signllm.inference.rank_share import distribute_batches
from signllm.metrics.hypotheses import Hypothesis, draw_derangement
from signllm.metrics.scores import METRICS, score
from signllm.package_files import package_folder
from signllm.reporting import write_report
from signllm.stages.trained_model import load_sign_llm
from tests import warm
from tests.inference import trained
from tests.models import parts
from tests.stages import path


def read_hypotheses(run: Path, name: str = "test") -> list[dict[str, Any]]:
    text = (run / f"hypotheses.{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_video_once_in_order_with_its_tokens(run: Path, shards: Path) -> None:
    scores = evaluate(run, shards, "test", EvaluateConfig(batch_size=3))
    lines = read_hypotheses(run)
    assert [line["id"] for line in lines] == [
        sample.id for sample in ShardIndex(shards).split("test").samples
    ]
    assert [line["reference"] for line in lines] == [s.text for s in ShardIndex(shards).split("test").samples]
    frames = [min(length, trained.MAX_FRAMES) for length in trained.LENGTHS]
    by_id = {f"clip{place}": (count - 13) // 4 + 1 for place, count in enumerate(frames)}
    assert {line["id"]: len(line["characters"]) for line in lines} == by_id
    assert len({line["hypothesis"] for line in lines}) > 1  # the texts depend on the videos
    assert scores["samples"] == len(lines)
    texts = [line["hypothesis"] for line in lines], [line["reference"] for line in lines]
    expected = score(*texts, bootstrap=1000)
    written = json.loads((run / "scores.test.json").read_text())
    assert written == scores
    assert {name: written[name] for name in expected} == expected
    assert written["checkpoint"] == "step-00000001"
    assert sum(group["samples"] for group in written["breakdowns"]["characters"]) == len(lines)
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(
    ("ranks", "partitioned"),
    [(2, False), (3, False), (2, True), (3, True)],
    ids=["2", "3", "2-zero3", "3-zero3"],
)
def test_the_same_on_any_number_of_ranks(
    trained_folder: Path, run: Path, tmp_path: Path, ranks: int, *, partitioned: bool
) -> None:
    shared = Path(shutil.copytree(run, tmp_path / "shared"))
    evaluate(run, trained_folder / "shards", "test", trained.ON_RANKS)
    words = ["tests.inference.trained", str(shared), str(trained_folder / "shards"), "test"]
    if partitioned:
        settings = json.loads((package_folder("ds_configs") / "zero3.json").read_text())
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # cut even tiny weights
        (tmp_path / "cut.json").write_text(json.dumps(settings))
        words.append(str(tmp_path / "cut.json"))
    done = warm.run_ranks(*words, ranks=ranks)
    assert done.codes == [0] * ranks, done.stderr[-4000:]
    for name in ("test", "test.shuffled"):
        assert read_hypotheses(shared, name) == read_hypotheses(run, name)
        alone, together = (json.loads((r / f"scores.{name}.json").read_text()) for r in (run, shared))
        assert {**alone, "seconds": 0} == {**together, "seconds": 0}


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 30])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_batches_stay_complete_and_ranks_get_equally_many(count: int, batch_size: int, world: int) -> None:
    shares = [
        distribute_batches(count, batch_size=batch_size, rank=rank, world=world) for rank in range(world)
    ]
    batches = math.ceil(count / batch_size)
    assert {math.ceil(len(share) / batch_size) for share in shares} == {math.ceil(batches / world)}
    assert sorted({place for share in shares for place in share}) == list(range(count))
    alone = [tuple(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    met = {tuple(share[i : i + batch_size]) for share in shares for i in range(0, len(share), batch_size)}
    assert met - {(0,)} == set(alone) - {(0,)}


def test_only_completely_translated_batches_are_left_out() -> None:
    done = [0, 1, 2, 3, 4, 6]  # batches of 3: the first is done, the second only partly
    shares = [distribute_batches(8, batch_size=3, rank=rank, world=2, done=done) for rank in range(2)]
    assert shares == [[3, 4, 5], [6, 7]]
    assert [distribute_batches(8, batch_size=3, rank=rank, world=2, done=range(8)) for rank in range(2)] == [
        [],
        [],
    ]


class Interrupted(VideoSource):
    """A source during which the process is asked to stop once, while the fifth video is read."""

    asked = False
    loaded: ClassVar[list[int]] = []

    def load(self, index: int, **arguments: Any) -> Any:
        self.loaded.append(index)
        if index == 4 and not Interrupted.asked:
            Interrupted.asked = True
            os.kill(os.getpid(), signal.SIGUSR2)
        return super().load(index, **arguments)


def test_a_stopped_evaluation_resumes(run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvaluateConfig(batch_size=1, workers=0)
    expected = evaluate(run, shards, "test", config)
    lines = read_hypotheses(run)
    monkeypatch.setattr(evaluate_module, "VideoSource", Interrupted)
    with preemption_flag(), pytest.raises(StoppedEarlyError, match="same command continues"):
        evaluate(run, shards, "test", config)
    kept = (run / "unfinished.test.jsonl").read_text().splitlines()[1:]
    assert 0 < len(kept) < len(lines)
    Interrupted.loaded.clear()
    assert evaluate(run, shards, "test", config) | {"seconds": 0} == expected | {"seconds": 0}
    assert set(Interrupted.loaded) == set(range(len(kept), len(lines)))
    assert read_hypotheses(run) == lines
    assert not (run / "unfinished.test.jsonl").exists()


def test_translations_of_other_search_settings_are_discarded(run: Path, shards: Path) -> None:
    wrong = Hypothesis(place=0, id="clip0", hypothesis="wrong", reference="", characters=[], words=[])
    kept = PartialTranslations(run, "test", {"generation": "another"})
    kept.write([wrong])
    assert kept.read() == [wrong]
    evaluate(run, shards, "test")
    assert "wrong" not in {line["hypothesis"] for line in read_hypotheses(run)}
    kept.path.write_text("{}\nrubbish")
    assert kept.read() == []


class Exchanged(VideoSource):
    """A source in which every video has the frames of another one, with its own text and id."""

    def load(self, index: int, **arguments: Any) -> Any:
        other = super().load(draw_derangement(len(self))[index], **arguments)
        sample = self.split.samples[index]
        return replace(other, id=sample.id, text=sample.text)


def test_shuffled_scores_equal_those_of_exchanged_videos(
    run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = evaluate(run, shards, "test", EvaluateConfig(batch_size=1, shuffled=True))["shuffled"]
    expected = read_hypotheses(run, "test.shuffled")
    plain = read_hypotheses(run)
    monkeypatch.setattr(evaluate_module, "VideoSource", Exchanged)
    exchanged = evaluate(run, shards, "test", EvaluateConfig(batch_size=1))
    assert read_hypotheses(run) == expected
    assert exchanged["bleu1"] == shuffled["bleu1"]
    assert [line["id"] for line in expected] == [line["id"] for line in plain]
    assert [line["characters"] for line in expected] != [line["characters"] for line in plain]


def test_tensorboard_has_the_scores_alarms_and_translations(
    run: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scores = evaluate(run, shards, "test", EvaluateConfig(batch_size=3, shuffled=True))
    events = EventAccumulator(str(run / "tensorboard" / "evaluate"), size_guidance={"tensors": 0}).Reload()
    for name, values in (("test", scores), ("test.shuffled", scores["shuffled"])):
        for metric in METRICS:
            (event,) = events.Scalars(f"{name}/{metric}")
            assert (event.step, event.value) == (1, pytest.approx(values[metric]))
    alarm, table = (
        events.Tensors(f"test/{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("alarm", "translations")
    )
    assert alarm.startswith("the language model ignores the signs: BLEU-4 is 0.0")
    assert alarm in caplog.text
    _head, _rule, *rows = table.splitlines()
    expected = [" ".join(("|", line["id"], "|", line["reference"], "|")) for line in read_hypotheses(run)]
    assert [row[: len(start)] for row, start in zip(rows, expected, strict=True)] == expected
    config = load_config(run, FinetuneConfig)
    save_config(run, replace(config, training=replace(config.training, tensorboard=False)))
    shutil.rmtree(run / "tensorboard")
    evaluate(run, shards, "test", EvaluateConfig(batch_size=3))
    assert not (run / "tensorboard").exists()


def test_word_coverage_equals_that_of_training(run: Path, shards: Path) -> None:
    scores = evaluate(run, shards, "test", EvaluateConfig(batch_size=3, shuffled=True))
    videos = VideoSource(ShardIndex(shards).split("test"), load_config(run, FinetuneConfig).data)
    (batch,) = Loader(videos, batch_size=len(videos), shuffle=False, epochs=1)
    with torch.no_grad():
        logged = float(load_sign_llm(run)(batch)["covered"])
    assert 0 < logged < 1
    assert scores["covered"] == scores["shuffled"]["covered"] == pytest.approx(logged)


def test_without_composed_words_no_coverage_is_reported() -> None:
    words = WordCodebook(codes=4, words=(), frequencies=(1,) * 5, alpha=None, codebook="")
    assert measure_word_coverage(words, [[0, 1, 2], [3]]) == {}


@pytest.mark.parametrize("count", [2, 3, 4, 50])
def test_a_derangement_has_no_fixed_point(count: int) -> None:
    for seed in range(20):
        order = draw_derangement(count, seed)
        assert sorted(order) == list(range(count))
        assert all(place != other for place, other in enumerate(order))
    assert draw_derangement(count) == draw_derangement(count)


def test_beams_and_convention_are_options_and_recorded(run: Path, shards: Path) -> None:
    config = EvaluateConfig(beams=3, convention="sacrebleu", final_period="drop")
    scores = evaluate(run, shards, "test", config)
    assert scores["generation"]["beams"] == 3
    assert scores["convention"] == "sacrebleu"
    assert "tok:13a" in scores["signature"]
    assert "final_period:drop" in scores["signature"]


def test_an_unreadable_video_is_an_error_that_names_it(
    trained_folder: Path, run: Path, tmp_path: Path
) -> None:
    trained.write_shards(tmp_path / "data", lengths=(25, 29, 33))
    shards = tmp_path / "data" / "shards"
    split = ShardIndex(shards).split("test")
    offset, size = split.samples[1].members["mp4"]
    with split.tars[0].open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"\0" * size)
    with pytest.raises(UsageError, match="1 of 3 videos cannot be read") as raised:
        evaluate(run, shards, "test")
    assert split.samples[1].id in str(raised.value.where)
    assert not (run / "scores.test.json").exists()


def test_usage_errors_name_the_remedy(run: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="zero2 does not partition"):
        evaluate(run, shards, "test", EvaluateConfig(deepspeed="zero2"))
    with pytest.raises(UsageError, match="no split 'dev'") as raised:
        evaluate(run, shards, "dev")
    assert "test" in str(raised.value.remedy)
    with pytest.raises(UsageError, match="not a run folder"):
        evaluate(tmp_path, shards, "test")
    with pytest.raises(UsageError, match="no finished shards"):
        evaluate(run, tmp_path, "test")
    with pytest.raises(UsageError, match="batch_size is 0"):
        EvaluateConfig(batch_size=0)
    with pytest.raises(UsageError, match="no score convention"):
        EvaluateConfig(convention="bleu")


def test_runs_of_another_stage_version_or_without_checkpoint(run: Path, shards: Path) -> None:
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"stage": "pretrain"}))
    with pytest.raises(UsageError, match="a run of pretrain, not of finetune"):
        evaluate(run, shards, "test")
    (run / "config.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(UsageError, match="format 99"):
        evaluate(run, shards, "test")
    (run / "config.json").write_text(json.dumps(record))
    (run / "checkpoints" / "step-00000001" / "COMPLETE").unlink()
    with pytest.raises(UsageError, match="no complete checkpoint"):
        evaluate(run, shards, "test")
    assert not list(run.glob("hypotheses.*"))


def test_another_dataset_in_another_language_has_its_own_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = path.write_videos(tmp_path / "own")
    german = ("morgen regen", "wind im norden", "heute sonne")
    other = path.write_videos(tmp_path / "other", "German", german).rename(tmp_path / "wetter 2")
    save_config(run, load_config(run, FinetuneConfig), open_mixture(own).records("train"))
    for data in (own, other):
        assert main(["evaluate", "--run", str(run), "--data", str(data), "--split", "dev", "--json"]) == 0
    assert json.loads((run / "scores.dev.json").read_text())["shards"] == str(own)
    scores = json.loads((run / "scores.dev@wetter-2.json").read_text())
    assert (scores["split"], scores["shards"], scores["samples"]) == ("dev@wetter-2", str(other), 3)
    assert [line["reference"] for line in read_hypotheses(run, "dev@wetter-2")] == list(german)
    assert [line["reference"] for line in read_hypotheses(run, "dev")] == list(parts.TEXTS[:3])
    page = write_report(run, shards=other).read_text()
    assert "dev@wetter-2" in page
    assert make_label(run, open_mixture(f"{own},{other}"), "dev") == "dev@shards+wetter-2"
    alone = path.write_videos(tmp_path / "alone", lengths={"dev": (33,)}).rename(tmp_path / "held-out")
    assert make_label(run, open_mixture(alone), "dev") == "dev@held-out"


def test_stale_scores_do_not_survive_new_translations(
    run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(run, shards, "test")
    from signllm.metrics import hypotheses

    def full(path: Path, text: str) -> None:
        raise UsageError("cannot write: No space left on device", where=path, remedy="free space")

    monkeypatch.setattr(hypotheses, "atomic_write", full)
    with pytest.raises(UsageError, match="No space left"):
        evaluate(run, shards, "test")
    assert not (run / "scores.test.json").exists()
