"""Stage 3: two phases, a run that needs nothing else, ZeRO-3 on two ranks, and what does not fit together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from signllm.config import FinetuneConfig, load_config
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import open_mixture
from signllm.errors import UsageError
from signllm.experiments.encoded_split import load_or_encode_split
from signllm.models.language_model import weight_quantization as language_model_quantization
from signllm.models.language_model.adapters import VIRTUAL, LoraConfig
from signllm.stages.finetune import finetune
from signllm.stages.phases import training_phases
from signllm.stages.trained_model import load_sign_llm, load_words
from signllm.training.checkpoint import last_checkpoint, load_weights
from signllm.training.engine import TrainingConfig
from tests.models import parts
from tests.stages import path


@pytest.fixture(scope="module")
def run(composed: Path) -> Path:
    config = path.finetune_config(composed / "llm")
    outcome = finetune(
        config,
        run=composed / "finetune",
        init=composed / "pretrain",
        dataset=open_mixture(composed / "shards"),
    )
    assert outcome.step == 3  # one joint epoch of five videos, two at a time
    return composed / "finetune"


def losses_of(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "l_sim" in line]


def test_the_frozen_phase_moves_no_encoder_and_lowers_the_text_loss(run: Path, composed: Path) -> None:
    encoder, frozen = load_weights(composed / "pretrain"), load_weights(run / "frozen")
    assert all(torch.equal(frozen[f"vq_sign.{name}"], tensor) for name, tensor in encoder.items())
    assert frozen["word_vectors.characters"].any()
    losses = losses_of(run / "frozen")
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_the_joint_phase_goes_on_from_there_and_moves_the_encoder(run: Path) -> None:
    frozen, joint = load_weights(run / "frozen"), load_weights(run)
    assert frozen.keys() == joint.keys()
    assert not torch.equal(joint["vq_sign.encoder.first.weight"], frozen["vq_sign.encoder.first.weight"])
    moved = (joint["projector.first.weight"] - frozen["projector.first.weight"]).abs().max()
    assert 0 < moved < 0.01  # three steps at 1e-3, not a new start
    assert not any(name.startswith("language_model") for name in joint)


def test_the_share_of_characters_in_words_is_logged_with_every_step_and_every_validation(run: Path) -> None:
    """Words do not go stale silently: as characters drift away from them, this share falls."""
    for folder in (run / "frozen", run):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        shares = [line["covered"] for line in lines if "loss" in line]
        assert shares
        assert all(0 <= share <= 1 for share in shares)
    validated = [line["validate/covered"] for line in lines if "validate/loss" in line]
    assert len(validated) == 1  # of the joint phase, at its end


def test_validations_of_both_phases_tell_the_loss_of_other_videos_texts(run: Path) -> None:
    for folder in (run / "frozen", run):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        (validation,) = [line for line in lines if "validate/loss" in line]
        assert validation["validate/l_sim_shuffled"] > 0
        assert validation["validate/l_sim_shuffled"] != validation["validate/l_sim"]


def test_the_run_needs_the_encoders_run_no_more(run: Path, composed: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved")
    model = load_sign_llm(tmp_path / "moved")
    assert model.words == WordCodebook.load(composed / "pretrain")
    stored = load_config(run, FinetuneConfig)
    assert stored.sign_llm.vq_sign == path.PRETRAIN.vq_sign
    assert len(model.generate(parts.batch_of())) == 4


def test_a_checkpoint_is_loaded_with_its_own_words(run: Path, composed: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    words = WordCodebook.load(moved)
    replace(words, alpha=99.0).save(moved)  # as if the copy for readers were older
    assert load_sign_llm(moved).words == words
    assert load_or_encode_split(moved, composed / "shards", "dev").words == words
    checkpoint = last_checkpoint(moved)
    assert checkpoint is not None
    for name in ("words.json", "words.safetensors"):
        (checkpoint / name).unlink()
    assert load_words(checkpoint, run) == words, "older checkpoints contain no words"


def test_a_finished_run_is_left_as_it_is(run: Path, composed: Path) -> None:
    before = load_weights(run)
    config = path.finetune_config(composed / "llm")
    finetune(config, run=run, init=composed / "pretrain", dataset=open_mixture(composed / "shards"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_weights(run).items())


def test_zero3_on_two_ranks_learns_what_one_rank_learns(run: Path, composed: Path) -> None:
    [parted] = path.on_ranks(composed, composed / "llm", "zero3", processes=2)
    for phase in ("frozen", "."):
        assert losses_of(parted / phase) == pytest.approx(losses_of(run / phase), rel=2e-3)
    straight = load_weights(run)
    for name, tensor in load_weights(parted).items():
        torch.testing.assert_close(
            tensor, straight[name], rtol=0.05, atol=2e-3, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_learnt_prompt_goes_from_one_rank_on_zero2_to_two_on_zero3(composed: Path) -> None:
    """The phase on characters in this process; the joint one here, and again on two ranks from its end."""
    straight, parted = composed / "prompted", composed / "prompted-zero3-of-2"
    config = path.prompted_config(composed / "llm")
    finetune(config, run=straight, init=composed / "pretrain", dataset=open_mixture(composed / "shards"))
    shutil.copytree(straight / "frozen", parted / "frozen")
    path.on_ranks(composed, composed / "llm", "prompted-zero3", processes=2)
    before, after = load_weights(straight / "frozen"), load_weights(straight)
    assert before.keys() == after.keys()
    assert [name for name in after if name.startswith("language_model")] == [VIRTUAL]
    assert 0 < (after[VIRTUAL] - before[VIRTUAL]).abs().max() < 0.01  # three steps at 1e-3
    for name, tensor in load_weights(parted).items():
        torch.testing.assert_close(
            tensor, after[name], rtol=0.05, atol=2e-3, msg=lambda text, n=name: f"{n}: {text}"
        )
    loaded = load_sign_llm(straight).language_model.virtual_tokens
    assert torch.equal(loaded.embedding.weight, after[VIRTUAL])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_learn_in_a_quantised_model_through_the_engine(
    composed: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, which bitsandbytes can for tests; weights of 4 bits stay as they are and are not saved."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(language_model_quantization, "device", lambda: torch.device("cpu"))
    llm = parts.save_language_model(tmp_path / "llm", width=64)
    config = path.finetune_config(llm, deepspeed="zero2")
    model = replace(
        config.sign_llm.language_model, dtype="bf16", quantize="4bit", lora=LoraConfig(rank=2, alpha=64)
    )
    training = replace(config.training, precision=precision)
    config = replace(config, sign_llm=replace(config.sign_llm, language_model=model), training=training)
    finetune(
        config, run=tmp_path / "run", init=composed / "pretrain", dataset=open_mixture(composed / "shards")
    )
    saved = load_weights(tmp_path / "run")
    adapters = {name: tensor for name, tensor in saved.items() if name.startswith("language_model")}
    assert adapters
    assert all("lora_" in name for name in adapters)
    assert all(tensor.any() for tensor in adapters.values()), "they begin at zero"
    loaded = load_sign_llm(tmp_path / "run")
    inner = loaded.language_model.model.get_base_model().model.layers[0]
    assert inner.mlp.up_proj.weight.dtype == torch.uint8
    assert len(loaded.generate(parts.batch_of())) == 4


def test_phases_share_out_the_epochs() -> None:
    training = TrainingConfig(epochs=5, learning_rate=1e-3)
    frozen, joint = training_phases(
        FinetuneConfig(training=training, frozen_epochs=2, frozen_learning_rate=0.1)
    )
    assert (frozen.epochs, frozen.learning_rate, joint.epochs, joint.learning_rate) == (2, 0.1, 3, 1e-3)
    assert training_phases(FinetuneConfig(training=training)) == (None, training)
    assert training_phases(FinetuneConfig(training=training, frozen_epochs=5))[1] is None
    with pytest.raises(UsageError, match="both phases"):
        training_phases(FinetuneConfig(training=training, frozen_epochs=6))


def test_what_does_not_fit_together_is_refused(composed: Path, tmp_path: Path) -> None:
    config = path.finetune_config(composed / "llm")
    arguments = {"run": tmp_path / "run", "dataset": open_mixture(composed / "shards")}
    with pytest.raises(UsageError, match=r"data\.size 32"):
        finetune(replace(config, data=replace(path.DATA, size=64)), init=composed / "pretrain", **arguments)
    with pytest.raises(UsageError, match="not a run folder"):
        finetune(config, init=tmp_path, **arguments)
    shutil.copytree(composed / "pretrain", tmp_path / "other")
    words = WordCodebook.load(composed / "pretrain")
    replace(words, codebook="0" * 16).save(tmp_path / "other")
    with pytest.raises(UsageError, match="does not fit"):
        finetune(config, init=tmp_path / "other", **arguments)
    (tmp_path / "other" / "words.json").unlink()
    with pytest.raises(UsageError, match="missing"):
        finetune(config, init=tmp_path / "other", **arguments)
    with pytest.raises(UsageError, match="language model"):
        finetune(path.finetune_config(tmp_path / "nothing"), init=composed / "pretrain", **arguments)
