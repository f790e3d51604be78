"""The frozen language model: input layout, losses against transformers' own, generation, bad folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from signllm.errors import UsageError
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.language_model import (
    GenerationConfig,
    LanguageModel,
    LanguageModelConfig,
    LoraConfig,
)

PROMPT, SEPARATOR = "translate {language}", ":"
COUNTS = torch.tensor([3, 1])
TEXTS = ["rain in the north", "sun"]
LANGUAGES = ["English", "English"]


def model(llm: Path, **changes: object) -> LanguageModel:
    return build_language_model(
        LanguageModelConfig(
            **{"path": str(llm), "dtype": "fp32", "prompt": PROMPT, "separator": SEPARATOR} | changes
        )
    )


@pytest.fixture
def words() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 16)


def test_the_loss_is_the_one_that_transformers_computes_text_by_text(llm: Path, words: torch.Tensor) -> None:
    losses, tokens, *_ = model(llm)(words, COUNTS, TEXTS, LANGUAGES)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    table = plain.get_input_embeddings()
    for place, part in enumerate(words.split(COUNTS.tolist())):
        ids = [
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in ("translate English", ":", TEXTS[place])
        ]
        text = torch.tensor([*ids[2], tokenizer.eos_token_id])
        before = [table(torch.tensor([tokenizer.bos_token_id, *ids[0]])), part, table(torch.tensor(ids[1]))]
        embedded = torch.cat([*before, table(text)])[None]
        labels = torch.cat([torch.full((embedded.shape[1] - len(text),), -100), text])[None]
        mean = plain(inputs_embeds=embedded, labels=labels).loss
        assert int(tokens[place]) == len(text)
        torch.testing.assert_close(losses[place], mean * len(text))


def test_nothing_of_it_learns_but_gradient_reaches_the_words(llm: Path, words: torch.Tensor) -> None:
    frozen = model(llm).train()
    losses, *_ = frozen(words.requires_grad_(), COUNTS, TEXTS, LANGUAGES)
    losses.sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert (words.grad.abs().sum(dim=1) > 0).all()


def test_recomputing_changes_no_gradient(llm: Path, words: torch.Tensor) -> None:
    grads = []
    for recompute in (False, True):
        word_vectors = words.clone().requires_grad_()
        losses, *_ = model(llm, gradient_checkpointing=recompute).train()(
            word_vectors, COUNTS, TEXTS, LANGUAGES
        )
        losses.sum().backward()
        grads.append(word_vectors.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_embeddings_want_no_gradient_where_activations_are_recomputed(llm: Path) -> None:
    recomputing = model(llm, gradient_checkpointing=True)
    assert not recomputing.embed([1, 2]).requires_grad
    assert not recomputing.sample_embeddings(4).requires_grad


def test_long_references_are_cut_and_still_end(llm: Path, words: torch.Tensor) -> None:
    _, tokens, *_ = model(llm, max_text_tokens=2)(words, COUNTS, TEXTS, LANGUAGES)
    assert tokens.tolist() == [3, 2]


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_does_not_depend_on_the_batch(llm: Path, words: torch.Tensor, beams: int) -> None:
    writer, generation = model(llm), GenerationConfig(beams=beams, max_new_tokens=8)
    together = writer.generate(words, COUNTS, LANGUAGES, generation)
    alone = [
        writer.generate(part, torch.tensor([len(part)]), ["English"], generation)[0]
        for part in words.split(COUNTS.tolist())
    ]
    assert together == alone
    assert any(together)


def test_greedy_generation_takes_the_most_probable_token_each_time(llm: Path, words: torch.Tensor) -> None:
    writer = model(llm)
    (text,) = writer.generate(words[:3], COUNTS[:1], ["English"], GenerationConfig(max_new_tokens=4))
    (prefix,) = writer._embed_prompts(words[:3], COUNTS[:1], ["English"], rooms=[4])
    tokens: list[int] = []
    while len(tokens) < 4 and (not tokens or tokens[-1] != writer.tokenizer.eos_token_id):
        embedded = torch.cat([prefix, writer.embed(tokens)])[None]
        tokens.append(int(writer.model(inputs_embeds=embedded).logits[0, -1].argmax()))
    assert text == writer.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_lora_trains_adapters_alone_and_starts_as_the_model(llm: Path, words: torch.Tensor) -> None:
    adapted = model(llm, lora=LoraConfig(rank=2))
    assert {name.split(".")[-3] for name, p in adapted.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    result, *_ = adapted(words, COUNTS, TEXTS, LANGUAGES)
    plain, *_ = model(llm)(words, COUNTS, TEXTS, LANGUAGES)
    torch.testing.assert_close(result, plain)
    with pytest.raises(UsageError, match="adapters cannot be added"):
        model(llm, lora=LoraConfig(targets=("no_such_layer",)))


def test_the_sampled_embeddings_are_rows_of_the_table(llm: Path) -> None:
    frozen = model(llm, dtype="bf16")
    table = frozen.model.get_input_embeddings().weight
    assert table.dtype == torch.bfloat16
    sample = frozen.sample_embeddings(4)
    torch.testing.assert_close(sample, table[[0, 5, 10, 15]].float())
    assert len(frozen.sample_embeddings(10_000)) == len(table)


def test_a_model_that_is_not_there_names_the_remedy(tmp_path: Path, llm: Path) -> None:
    with pytest.raises(UsageError, match="no language model is given"):
        build_language_model(LanguageModelConfig())
    with pytest.raises(UsageError, match="give the folder of a language model"):
        model(tmp_path / "nothing")
    with pytest.raises(UsageError, match="hf download meta-llama/Llama-9"):
        model(Path("meta-llama/Llama-9"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be loaded"):
        model(tmp_path)
    with pytest.raises(UsageError, match=r"\{language\}"):
        LanguageModelConfig(prompt="Translate {tongue}")
