"""Decoding: scores against the model's own loss, draws against probabilities, rows alone as in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from signllm.errors import UsageError
from signllm.models.language_model import generation
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.generation import GenerationConfig, sampling_seed
from signllm.models.language_model.language_model import LanguageModel, LanguageModelConfig
from tests.models.families import save_family

COUNTS = torch.tensor([3, 1])
LANGUAGES = ["German", "English"]
DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"beams": 4, "n_best": 3, "length_penalty": 0.5},
    "without repeats": {"no_repeat_ngram": 2},
    "beams without repeats": {"beams": 3, "n_best": 2, "no_repeat_ngram": 2},
    "drawn": {"temperature": 1.5, "n_best": 4, "seed": 3},
    "drawn among few": {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "n_best": 2},
}


@pytest.fixture(scope="module", params=["llama", "t5"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = save_family(tmp_path_factory.mktemp(request.param), request.param)
    model = build_language_model(LanguageModelConfig(path=str(folder), dtype="fp32"))
    with torch.no_grad():
        for parameter in model.parameters() if request.param == "t5" else ():
            parameter.mul_(0.5)  # it would be sure of every token
    return model


@pytest.fixture
def words() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 16)


@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)
def test_a_score_is_the_mean_log_probability_that_training_gives_the_text(
    model: LanguageModel, words: torch.Tensor, decoding: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are kept as they are written: a text may be cut into others."""
    settings = GenerationConfig(max_new_tokens=6, **decoding)
    rows: list[list[int]] = []
    generate = model.model.generate

    def noted(**options: Any) -> Any:
        written = generate(**options)
        rows.extend(getattr(written, "sequences", written).tolist())
        return written

    monkeypatch.setattr(model.model, "generate", noted)
    monkeypatch.setattr(generation, "_rank_candidates", lambda candidates, _: tuple(candidates))
    result = model.generate_candidates(words, COUNTS, LANGUAGES, settings, [1, 2])
    scores = [one.score for candidates in result for one in candidates]
    assert len(scores) == len(rows) == 2 * settings.n_best
    monkeypatch.undo()
    for place, (score, tokens) in enumerate(zip(scores, rows, strict=True)):
        video = place // settings.n_best
        part = words.split(COUNTS.tolist())[video]
        expected = _mean(model, part, LANGUAGES[video], tokens, monkeypatch)
        assert score == pytest.approx(expected, rel=1e-3, abs=1e-5)


def _mean(
    model: LanguageModel,
    part: torch.Tensor,
    language: str,
    tokens: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> float:
    """Return the mean log probability that training's loss gives tokens, their end included."""
    end = model.tokenizer.eos_token_id
    tokens = tokens[1:] if model.kind == "encoder-decoder" else tokens
    kept = tokens[: tokens.index(end) + 1] if end in tokens else tokens
    with monkeypatch.context() as patched:
        patched.setattr(model, "_text_tokens", lambda text, room=None: kept)
        scored = model(part, torch.tensor([len(part)]), [""], [language])
    return -float(scored.losses[0]) / len(kept)


def test_equal_texts_are_one_candidate_and_the_best_comes_first(
    model: LanguageModel, words: torch.Tensor
) -> None:
    settings = GenerationConfig(max_new_tokens=1, temperature=1.0, n_best=40)
    for candidates in model.generate_candidates(words, COUNTS, LANGUAGES, settings, [1, 2]):
        assert 1 < len(candidates) < 40
        assert len({one.text for one in candidates}) == len(candidates)
        assert [one.score for one in candidates] == sorted((one.score for one in candidates), reverse=True)


@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)
def test_candidates_do_not_depend_on_the_batch(
    model: LanguageModel, words: torch.Tensor, decoding: dict[str, Any]
) -> None:
    settings = GenerationConfig(max_new_tokens=6, **decoding)
    together = model.generate_candidates(words, COUNTS, LANGUAGES, settings, [7, 8])
    for place, part in enumerate(words.split(COUNTS.tolist())):
        counts = torch.tensor([len(part)])
        (alone,) = model.generate_candidates(part, counts, [LANGUAGES[place]], settings, [7 + place])
        assert [one.text for one in alone] == [one.text for one in together[place]]
        for one, other in zip(alone, together[place], strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-4)


def test_draws_come_as_often_as_their_probability(model: LanguageModel, words: torch.Tensor) -> None:
    """One token of 3000 rows that read the same, at another temperature, against the model's softmax."""
    rows, temperature = 3000, 2.0
    settings = GenerationConfig(max_new_tokens=1, temperature=temperature)
    counts = torch.full((rows,), 1)
    result = model.generate_candidates(
        words[:1].repeat(rows, 1), counts, ["German"] * rows, settings, list(range(rows))
    )
    drawn = [texts[0].score for texts in result]  # a token's own log probability tells it from the others
    for score in set(drawn):
        share = drawn.count(score) / rows
        if share > 0.02:
            others = torch.tensor(sorted(set(drawn))).div(temperature).exp().sum()
            expected = float(torch.tensor(score / temperature).exp() / others)
            assert share == pytest.approx(expected, abs=4 * (expected / rows) ** 0.5 + 0.02)


def test_a_narrow_draw_is_the_likeliest_token(model: LanguageModel, words: torch.Tensor) -> None:
    greedy = model.generate(words, COUNTS, LANGUAGES, GenerationConfig(max_new_tokens=6))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        settings = GenerationConfig(**{"max_new_tokens": 6, "temperature": 1.0} | narrow)
        assert model.generate(words, COUNTS, LANGUAGES, settings) == greedy


def test_seeds_differ_by_the_words_and_by_the_seed() -> None:
    assert (
        len(
            {
                sampling_seed([1, 2], 0),
                sampling_seed([1, 2], 1),
                sampling_seed([2, 1], 0),
                sampling_seed([12], 0),
            }
        )
        == 4
    )
    assert sampling_seed([1, 2], 0) == sampling_seed((1, 2), 0)


@pytest.mark.parametrize(
    ("settings", "message", "remedy"),
    [
        ({"n_best": 3}, "n_best is 3, .* 1 beams", "set beams to 3"),
        ({"n_best": 3, "beams": 2}, "n_best is 3, .* 2 beams", "temperature"),
        ({"n_best": 0}, "n_best is 0", "1 or more"),
        ({"temperature": 0.0}, "temperature is 0.0", "more than 0"),
        ({"temperature": 1.0, "beams": 2}, "beams is 2", "beams or a temperature"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5", "at most 1"),
        ({"top_k": 5}, "top_k", "give a temperature"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str, remedy: str
) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")) as raised:
        GenerationConfig(**settings)
    assert remedy in str(raised.value.remedy)
