"""Words composed anew in stage 3: what was learnt follows the spelling, and nothing else notices."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.experiments.encoded_split import load_or_encode_split
from signllm.stages import recompose
from signllm.stages.finetune import finetune
from signllm.stages.train_characters import TrainCharacters
from signllm.stages.trained_model import load_sign_llm, load_words
from signllm.training.checkpoint import last_checkpoint, load_moments, load_weights
from signllm.training.engine import TrainingConfig
from signllm.training.training_log import read_log
from tests.stages import path
from tests.training.toy import ToyLoader

STEPS = (3, 6)
"""Nine steps in three epochs; behind the last one words stay."""
CHANGE = ("composed_words", "kept_words", "covered/old_words", "covered/new_words")


def words(*spellings: tuple[int, ...], codes: int = 3) -> WordCodebook:
    return WordCodebook(
        codes=codes,
        words=spellings,
        frequencies=(1,) * (codes + 1 + len(spellings)),
        alpha=2.0,
        codebook="",
        segmentation="longest",
    )


@pytest.fixture(scope="module")
def run(composed: Path) -> Path:
    outcome = trained(composed, composed / "recomposed")
    assert outcome == 9
    return composed / "recomposed"


def trained(composed: Path, run: Path, every: int = 1, **training: Any) -> int:
    config = replace(path.recompose_config(composed / "llm", **training), recompose_every=every)
    return finetune(config, run=run, init=composed / "pretrain", shards=composed / "shards").step


def losses_of(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(run) if "loss" in line]


def changes_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(run) if CHANGE[0] in line]


def test_rows_follow_the_spelling_and_new_words_start_at_nothing() -> None:
    before, after = words((0, 1), (1, 2), (2, 2)), words((2, 2), (0, 2), (0, 1))
    rows = torch.arange(4.0, 8.0)[:, None].repeat(1, 2)  # s0 by itself, three words
    name = "word_vectors.words"
    for key in (name, f"exp_avg/{name}", f"exp_avg_sq/{name}"):
        other = torch.ones(7)
        carried = recompose.move_word_rows({key: rows, "projector.weight": other}, before, after)
        assert carried[key][:, 0].tolist() == [4, 7, 0, 5]
        assert carried["projector.weight"] is other
        there_and_back = recompose.move_word_rows({key: rows}, before, words(*reversed(before.words)))
        back = recompose.move_word_rows(there_and_back, words(*reversed(before.words)), before)
        assert torch.equal(back[key], rows)
    assert recompose.move_word_rows({name: rows}, before, words())[name][:, 0].tolist() == [4]


def test_words_are_due_behind_every_so_many_epochs_and_not_at_the_end() -> None:
    def due(every: int, done: int = 0, **training: Any) -> tuple[int, ...]:
        batches = ToyLoader(batch_size=4, rank=0, world=1, steps_per_epoch=5)
        for _ in zip(range(done * training.get("accumulation", 1)), batches, strict=False):
            pass
        config = TrainingConfig(batch_size=4, **training)
        return tuple(recompose.recomposition_steps(every, config, batches, done))

    assert due(0, epochs=3) == ()
    assert due(1, epochs=3) == (5, 10)
    assert due(2, epochs=5) == (10, 20)
    assert due(1, epochs=3, steps=12) == (5, 10)
    assert due(1, epochs=3, steps=10) == (5,)
    assert due(1, epochs=2, accumulation=2) == (2,)
    assert due(1, steps=3) == ()
    assert [due(1, done, epochs=3) for done in (4, 5, 6, 11, 15)] == [(5, 10), (5, 10), (10,), (), ()]
    assert due(1, 2, epochs=3, accumulation=2) == (2, 5)


def test_what_changed_is_logged_and_every_checkpoint_holds_its_words(run: Path, composed: Path) -> None:
    lines = changes_of(run)
    assert [line["step"] for line in lines] == list(STEPS)
    for line in lines:
        assert all(0 <= line[name] <= 1 for name in CHANGE[1:])
    assert [step for step, _ in losses_of(run)] == list(range(1, 10))
    current = WordCodebook.load(run)
    assert lines[-1]["composed_words"] == len(current.words)
    assert current.config["recomposed_at"] == STEPS[-1]
    assert current.config["words"] == WordCodebook.load(composed / "pretrain").config["words"]
    assert current.codebook != WordCodebook.load(composed / "pretrain").codebook, "the codebook has moved"
    checkpoints = sorted((run / "checkpoints").iterdir())
    assert all(
        {"words.json", "words.safetensors"} <= json.loads((c / "COMPLETE").read_text()).keys()
        for c in checkpoints
    )
    assert load_weights(run)["word_vectors.words"].shape[0] == 1 + len(current.words)


def test_what_is_evaluated_has_the_words_of_its_checkpoint(run: Path, composed: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    current = WordCodebook.load(moved)
    WordCodebook.load(composed / "pretrain").save(moved)  # as if the copy for readers were behind
    assert load_sign_llm(moved).words == current
    assert load_or_encode_split(moved, composed / "shards", "dev").words == current
    checkpoint = last_checkpoint(moved)
    assert checkpoint is not None
    for name in ("words.json", "words.safetensors"):
        (checkpoint / name).unlink()
    assert load_words(checkpoint, run) == current, "checkpoints of before they held words"


def test_stopped_anywhere_it_goes_on_to_the_same_words_and_losses(
    run: Path, composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing of ours catches it."""

    def killed_in(owner: Any, name: str, *, afterwards: bool = False) -> None:
        real = getattr(owner, name)

        def accident(*args: Any, **options: Any) -> None:
            if afterwards:
                real(*args, **options)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, accident)
            with pytest.raises(Killed):
                trained(composed, tmp_path)

    def last() -> str:
        folder = last_checkpoint(tmp_path)
        return "" if folder is None else folder.name

    killed_in(TrainCharacters, "encode")
    assert last() == "step-00000003"
    killed_in(TrainCharacters, "encode", afterwards=True)
    killed_in(recompose, "save_checkpoint")
    assert last() == "step-00000003"
    killed_in(recompose, "save_checkpoint", afterwards=True)
    assert last() == "step-00000003.1"
    killed_in(TrainCharacters, "compose")
    assert last() == "step-00000006"
    assert trained(composed, tmp_path) == 9
    assert losses_of(tmp_path) == losses_of(run)
    assert changes_of(tmp_path) == changes_of(run)
    assert WordCodebook.load(tmp_path) == WordCodebook.load(run)


def test_characters_that_cannot_be_composed_stop_the_run_which_may_go_on_with_its_words(
    composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collapsed(self: TrainCharacters, *corpus: Any) -> WordCodebook:
        raise UsageError("the character codebook has collapsed")

    monkeypatch.setattr(TrainCharacters, "compose", collapsed)
    with pytest.raises(
        UsageError, match=r"at step 3: the character codebook has collapsed(.|\n)*--recompose-every 0"
    ):
        trained(composed, tmp_path)
    assert trained(composed, tmp_path, every=0, steps=4) == 4
    assert load_sign_llm(tmp_path).words == WordCodebook.load(composed / "pretrain")


@pytest.mark.parametrize("deepspeed", ["zero0", "zero3"])
def test_words_that_do_not_change_leave_no_trace(
    composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deepspeed: str
) -> None:
    """Steps of two forward passes: the epoch's five end in the middle of one, words come before it."""
    training = {
        "epochs": 2,
        "accumulation": 2,
        "schedule": "cosine",
        "warmup_steps": 2,
        "deepspeed": deepspeed,
    }
    assert trained(composed, tmp_path / "plain", every=0, **training) == 5

    def unchanged(self: TrainCharacters, *corpus: Any) -> WordCodebook:
        return replace(WordCodebook.load(composed / "pretrain"), config=self.words_config)

    monkeypatch.setattr(TrainCharacters, "compose", unchanged)
    assert trained(composed, tmp_path / "anew", **training) == 5
    [change] = changes_of(tmp_path / "anew")
    assert (change["step"], change["kept_words"]) == (2, 1.0)
    assert change["covered/old_words"] == change["covered/new_words"]
    assert losses_of(tmp_path / "anew") == losses_of(tmp_path / "plain")
    for read in (load_weights, lambda run: load_moments(last_checkpoint(run))):
        plain, anew = read(tmp_path / "plain"), read(tmp_path / "anew")
        assert plain.keys() == anew.keys()
        assert all(torch.equal(tensor, anew[name]) for name, tensor in plain.items())


def test_ranks_and_zero_stages_find_the_same_words_and_losses(run: Path, composed: Path) -> None:
    names = ("recompose-zero1", "recompose-zero3")
    for parted in path.on_ranks(composed, composed / "llm", *names, processes=2):
        assert WordCodebook.load(parted).words == WordCodebook.load(run).words
        assert [line["step"] for line in changes_of(parted)] == list(STEPS)
        for changes, alone in zip(changes_of(parted), changes_of(run), strict=True):
            assert [changes[name] for name in CHANGE] == pytest.approx([alone[name] for name in CHANGE])
        assert [loss for _, loss in losses_of(parted)] == pytest.approx(
            [loss for _, loss in losses_of(run)], rel=2e-3
        )


def test_words_that_do_not_say_how_they_were_made_are_refused_before_training(
    composed: Path, tmp_path: Path
) -> None:
    shutil.copytree(composed / "pretrain", tmp_path / "init")
    replace(WordCodebook.load(tmp_path / "init"), config={}).save(tmp_path / "init")
    config = path.recompose_config(composed / "llm")
    with pytest.raises(UsageError, match="how they were composed"):
        finetune(config, run=tmp_path / "run", init=tmp_path / "init", shards=composed / "shards")
    assert not (tmp_path / "run" / "config.json").exists()
