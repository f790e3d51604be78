"""A pretrained chat model answers, ends its answers and scores texts; skipped where there is none.

``SIGNLLM_TEST_MODELS`` names a folder with ``smollm2-135m``, which is SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.generation import GenerationConfig
from signllm.models.language_model.language_model import LanguageModel, LanguageModelConfig

FOLDER = Path(os.environ.get("SIGNLLM_TEST_MODELS") or "no-models") / "smollm2-135m"
QUESTIONS = ("What is the capital of France?", "Who wrote Romeo and Juliet?")
RIGHT = ("The capital of France is Paris.", "William Shakespeare wrote Romeo and Juliet.")
WRONG = ("Grass is eaten by some cows.", "My dog likes green cars very much.")
LETTERS = ("qz xv jk wpt zzk lmq", "vbn ert qq zx pl okm")
ENGLISH = ["English"] * 2

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="SIGNLLM_TEST_MODELS names no folder of models")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    prompt = "Answer this question in {language}:"
    return build_language_model(LanguageModelConfig(path=str(FOLDER), dtype="fp32", prompt=prompt))


@pytest.fixture(scope="module")
def questions(model: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed token embeddings of questions, which are used in place of sign words."""
    tokens = [model.prompt.tokens(question) for question in QUESTIONS]
    embedded = torch.cat([model.embed(ids) for ids in tokens])
    return embedded, torch.tensor([len(ids) for ids in tokens])


def test_it_answers_what_is_in_place_of_the_signs_and_stops(
    model: LanguageModel, questions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    words, counts = questions
    settings = GenerationConfig(max_new_tokens=24)
    assert model.tokenizer.decode(model.prompt.end) == "<|im_end|>"
    together = model.generate_candidates(words, counts, ENGLISH, settings)
    assert together[0][0].text == RIGHT[0], "and nothing after it"
    assert "Shakespeare" in together[1][0].text
    for part, candidates in zip(words.split(counts.tolist()), together, strict=True):
        (alone,) = model.generate_candidates(part, torch.tensor([len(part)]), ["English"], settings)
        assert alone[0].text == candidates[0].text
        assert alone[0].score == pytest.approx(candidates[0].score, abs=1e-4)
    scored = model(words, counts, RIGHT, ENGLISH)
    assert float(scored.losses[0] / scored.tokens[0]) == pytest.approx(-together[0][0].score, abs=1e-4)


def test_right_answers_are_likelier_than_wrong_ones_and_those_than_letters(
    model: LanguageModel, questions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    words, counts = questions
    scored = [model(words, counts, texts, ENGLISH) for texts in (RIGHT, WRONG, LETTERS)]
    right, wrong, letters = (one.losses / one.tokens for one in scored)
    torch.manual_seed(0)
    noise = torch.randn_like(words) * words.std()
    blind = model(noise, counts, RIGHT, ENGLISH)
    assert bool((right + 1 < wrong).all())
    assert bool((wrong + 1 < letters).all())
    assert bool((right + 1 < blind.losses / blind.tokens).all()), "the signs are read"


def test_gradient_reaches_the_signs(
    model: LanguageModel, questions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    words, counts = questions
    word_vectors = words.clone().requires_grad_()
    model(word_vectors, counts, RIGHT, ENGLISH).losses.sum().backward()
    assert bool((word_vectors.grad.abs().sum(dim=1) > 0).all())
