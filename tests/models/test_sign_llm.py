"""SignLLM: gradients of each part, both kinds of batches, independence of padding, generation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from signllm.errors import UsageError
from signllm.kernels.mmd import mmd
from signllm.kernels.mmd_bandwidths import median_bandwidths
from signllm.models.language_model.language_model import GenerationConfig
from signllm.models.sign_llm import SignLLM, SignLLMConfig, build_sign_llm
from tests.models import on_ranks, parts


@pytest.fixture
def model(llm: Path) -> SignLLM:
    built = on_ranks.sign_llm(llm)
    built.vq_sign.initialize_codebook([parts.batch_of()])
    return built


def gradients_of(model: SignLLM, loss: torch.Tensor) -> set[str]:
    model.zero_grad()
    loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_the_weighted_sum_is_the_loss_and_comes_first(model: SignLLM) -> None:
    shares = model(parts.batch_of())
    assert next(iter(shares)) == "loss"
    torch.testing.assert_close(shares["loss"], shares["l_sim"] + 0.5 * shares["l_mmd"] + shares["l_vq"])
    assert [name for name, value in shares.items() if value.requires_grad] == ["loss"]
    assert 0 < shares["covered"] <= 1


def test_the_text_loss_alone_reaches_encoder_words_and_projector_but_not_the_llm(model: SignLLM) -> None:
    model.config = replace(model.config, mmd_weight=0.0, vq_weight=0.0)
    reached = gradients_of(model, model(parts.batch_of())["loss"])
    for part in (
        "vq_sign.encoder.backbone",
        "vq_sign.encoder.first",
        "word_vectors.characters",
        "word_vectors.words",
        "word_vectors.gains",
        "projector.first",
    ):
        assert any(name.startswith(part) for name in reached), part
    assert not any(name.startswith(("language_model", "vq_sign.predictor")) for name in reached)


def test_recorded_characters_give_the_same_text_loss_without_the_encoder(model: SignLLM) -> None:
    batch = parts.batch_of()
    recorded = parts.with_characters(batch, model.vq_sign)
    video, characters = model(batch), model(recorded)
    torch.testing.assert_close(characters["l_sim"], video["l_sim"])
    torch.testing.assert_close(characters["l_mmd"], video["l_mmd"])
    assert not {"l_vq", "l_cp", "l_q"} & characters.keys()
    reached = gradients_of(model, characters["loss"])
    assert {name.split(".")[0] for name in reached} == {"word_vectors", "projector"}


@torch.no_grad()
def test_evaluation_mode_adds_the_discrepancy_with_fixed_bandwidths(model: SignLLM) -> None:
    batch = parts.batch_of()
    assert "mmd_fixed" not in model(batch)
    model.eval().config = replace(model.config, mmd_weight=0.0)
    near = model(batch)
    signs = model._signs(batch)
    rows = torch.cat(model._project(signs, model._segment(signs)))
    text = model.text_embeddings
    expected = mmd(rows, text, bandwidths=median_bandwidths(text, text), unbiased=True)
    torch.testing.assert_close(near["mmd_fixed"], expected)
    assert near["l_mmd"] == 0
    model.projector.second.bias += 1.0  # away from the text, by far more than its own scale
    far = model(batch)["mmd_fixed"]
    model.projector.second.bias += 1.0
    further = model(batch)["mmd_fixed"]
    assert near["mmd_fixed"] < far <= further


def test_l_mmd_is_that_of_every_occurrence_of_every_word_and_character(model: SignLLM) -> None:
    batch = parts.batch_of()
    signs = model._signs(batch)
    segmentation = model._segment(signs)
    rows = torch.cat(model._project(signs, segmentation))
    assert len(signs.index.unique()) < len(signs.index)
    expected = mmd(rows, model.text_embeddings)
    actual = model(batch)["l_mmd"]
    torch.testing.assert_close(actual, expected.detach())
    words, characters = model._project(signs, segmentation)
    merged = model._l_mmd(words, characters, segmentation, signs, batch)
    weights = [parameter for name, parameter in model.named_parameters() if name.startswith("word_vectors")]
    for one_by_one, together in zip(
        torch.autograd.grad(expected, weights), torch.autograd.grad(merged, weights), strict=True
    ):
        torch.testing.assert_close(together, one_by_one)


@torch.no_grad()
def test_evaluation_mode_adds_the_loss_of_other_videos_sentences(model: SignLLM) -> None:
    batch = parts.batch_of(real=(True, True, True, False))
    exchanged = replace(batch, other_texts=[batch.texts[place] for place in (1, 2, 0, 3)])
    assert "l_sim_shuffled" not in model(exchanged)
    model.eval()
    assert "l_sim_shuffled" not in model(batch)
    result = model(exchanged)
    expected = model(replace(batch, texts=exchanged.other_texts))["l_sim"]
    torch.testing.assert_close(result["l_sim_shuffled"], expected)
    torch.testing.assert_close(result["l_sim"], model(batch)["l_sim"])
    assert result["l_sim_shuffled"] != result["l_sim"]


def test_padding_videos_weigh_nothing(model: SignLLM) -> None:
    padded = parts.batch_of(real=(True, True, False, False))
    cut = parts.batch_of(lengths=parts.LENGTHS[:2])
    result, expected = model.eval()(padded), model(cut)
    for name in ("l_sim", "l_mmd", "mmd_fixed", "l_q", "covered", "words", "text_tokens"):
        torch.testing.assert_close(result[name], expected[name], msg=lambda text, n=name: f"{n}: {text}")


def test_generation_gives_text_characters_and_words_of_every_video(model: SignLLM) -> None:
    batch = parts.batch_of()
    result = model.eval().generate(batch, GenerationConfig(max_new_tokens=5))
    assert [len(one.characters) for one in result] == [8, 5, 7, 4]
    for one in result:
        spelt = [c for word in one.words for c in model.words.spell(word) if c != model.words.slow_down]
        collapsed = [c for i, c in enumerate(one.characters) if i == 0 or c != one.characters[i - 1]]
        assert spelt == collapsed
    again = model.generate(parts.with_characters(batch, model.vq_sign), GenerationConfig(max_new_tokens=5))
    for one, other in zip(again, result, strict=True):
        assert (one.text, one.characters, one.words) == (other.text, other.characters, other.words)
        assert one.candidates[0].score == pytest.approx(other.candidates[0].score, rel=1e-5)
        assert [one.words[slot] for slot in sorted(set(one.slots))] == one.words
        assert len(one.slots) == len(one.characters)
        assert one.slots == sorted(one.slots)


def test_the_projector_starts_at_the_scale_of_the_text_embeddings(model: SignLLM) -> None:
    out = model.projector(torch.randn(400, 8)).detach()
    assert float(out.square().mean().sqrt() / model.text_embeddings.square().mean().sqrt()) == pytest.approx(
        1, rel=0.15
    )


def test_training_lowers_the_text_loss(model: SignLLM) -> None:
    recorded = parts.with_characters(parts.batch_of(), model.vq_sign)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=0.02)
    losses = []
    for _ in range(30):
        shares = model(recorded)
        optimizer.zero_grad()
        shares["loss"].backward()
        optimizer.step()
        losses.append(float(shares["l_sim"]))
    assert losses[-1] < losses[0] - 0.3


def test_words_of_another_number_of_characters_are_refused(llm: Path, model: SignLLM) -> None:
    other = replace(model.config, vq_sign=parts.vq_config(quantizer={"codes": 9}))
    with pytest.raises(UsageError, match="12 characters, not 9"):
        build_sign_llm(other, model.words)
    with pytest.raises(UsageError, match="--init"):
        build_sign_llm(replace(model.config, vq_sign=None), model.words)
    with pytest.raises(UsageError, match="mmd_weight"):
        SignLLMConfig(mmd_weight=-1.0)
