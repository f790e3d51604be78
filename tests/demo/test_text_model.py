"""The small language model: it learns, it loads like any other, and it never reads a held-out sentence."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from signllm.demo.demonstration import DemoConfig, learn_language, training_texts
from signllm.demo.language import function_words, sentences
from signllm.demo.studio import StudioConfig, split_sentences
from signllm.demo.text_model import TextModelConfig, train_text_model
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.language_model import GenerationConfig, LanguageModelConfig
from signllm.models.language_model.prompt import find_family

TINY = {"width": 32, "layers": 1, "heads": 2, "batch_size": 8}
TEXTS = [sentence.text for sentence in islice(sentences(0), 300)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("text") / "model"
    return folder, train_text_model(TEXTS, function_words(), folder, TextModelConfig(steps=80, **TINY))


def test_training_lowers_the_loss(trained: tuple[Path, float], tmp_path: Path) -> None:
    begun = train_text_model(TEXTS, function_words(), tmp_path / "m", TextModelConfig(steps=1, **TINY))
    assert begun == pytest.approx(6.24, abs=0.3)  # ln 512: every token is as likely as any other
    assert trained[1] < begun - 2


def test_the_same_settings_give_the_same_model(tmp_path: Path) -> None:
    config = TextModelConfig(steps=3, **TINY)
    losses = [train_text_model(TEXTS, function_words(), tmp_path / name, config) for name in "ab"]
    assert losses[0] == losses[1]
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second


def test_stage_three_loads_it_as_any_language_model(trained: tuple[Path, float]) -> None:
    model = build_language_model(LanguageModelConfig(path=str(trained[0]), dtype="fp32"))
    assert not any(p.requires_grad for p in model.parameters())
    assert model.width == 32
    words, counts = torch.randn(5, 32), torch.tensor([2, 3])
    written = model.generate(words, counts, ["English"] * 2, GenerationConfig(max_new_tokens=5))
    assert len(written) == 2


def test_a_sentence_is_spelled_as_its_words_are(trained: tuple[Path, float]) -> None:
    """The model was trained on words' tokens one after the other: stage 3 must tokenise references alike."""
    tokenizer = build_language_model(LanguageModelConfig(path=str(trained[0]), dtype="fp32")).tokenizer

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for text in TEXTS[:50]:
        assert tokens(text) == [token for word in text.split() for token in tokens(word)]
        assert tokenizer.decode(tokens(text)).strip() == text


def test_prompt_and_separator_are_those_of_stage_three() -> None:
    text, stage = TextModelConfig(), find_family("llama")
    assert text.prompt == stage.prompt.format(language="English")
    assert text.separator == stage.separator


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_sentences_are_in_none_of_its_texts(seed: int) -> None:
    config = StudioConfig(seed=seed)
    splits, texts = split_sentences(config), training_texts(config)
    held_out = {sentence.text for split in ("dev", "test") for sentence in splits[split]}
    assert not held_out & set(texts)
    drawn = {sentence.text for sentence in islice(sentences(seed + 1), 6000)}
    assert drawn & held_out  # they would have been among them
    assert len(texts) == len(drawn) - len(drawn & held_out)


def test_a_model_that_is_there_is_whole_and_not_trained_again(tmp_path: Path) -> None:
    config = DemoConfig(text_model=TextModelConfig(steps=1, **TINY))
    half_written = tmp_path / ".model.part"
    half_written.mkdir()
    (half_written / "left.behind").touch()
    learn_language(tmp_path / "model", config)
    assert not half_written.exists()
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "model").iterdir()}
    assert not (tmp_path / "model" / "left.behind").exists()
    before = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    learn_language(tmp_path / "model", config)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == before
