"""Chat templates of every kind: what follows the signs, what ends a text, and those that cannot be used."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from signllm.errors import UsageError
from signllm.models.language_model import chat_template
from signllm.models.language_model.builder import build_language_model, build_prompt
from signllm.models.language_model.chat_template import close_reasoning
from signllm.models.language_model.generation import GenerationConfig
from signllm.models.language_model.language_model import LanguageModel, LanguageModelConfig
from tests.models.chat_templates import BROKEN, CHATML, LLAMA3, QWEN3, SEVERAL_TOKENS, TEMPLATES
from tests.models.families import save_chat_model, save_family

COUNTS = torch.tensor([3, 1])
TEXTS = ["Regen.", "Sonne im Norden"]
LANGUAGES = ["German", "German"]


@pytest.fixture
def words() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 16)


def loaded(folder: Path, **changes: Any) -> LanguageModel:
    return build_language_model(LanguageModelConfig(**{"path": str(folder), "dtype": "fp32"} | changes))


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_the_signs_are_followed_by_what_precedes_an_answer_and_texts_end_as_answers_do(
    tmp_path: Path, name: str, words: torch.Tensor
) -> None:
    template = TEMPLATES[name]
    model = loaded(save_chat_model(tmp_path, template.text, template.special))
    before, after = (model.tokenizer.decode(ids) for ids in model.prompt.context_tokens("German"))
    assert after == template.after
    assert before.endswith("Translate this sign language into German: ")
    assert model.tokenizer.decode(model.prompt.end) == template.end
    assert model.prompt.ends == list(dict.fromkeys([model.prompt.end, (model.tokenizer.eos_token_id,)]))
    scored = model(words, COUNTS, TEXTS, LANGUAGES)
    assert scored.tokens.tolist() == [len(text.encode()) + len(model.prompt.end) for text in TEXTS]
    assert len(set(model.prompt.end)) >= 1
    assert model.tokenizer.unk_token_id not in model.prompt.end


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("template", [CHATML, SEVERAL_TOKENS], ids=["one token", "several tokens"])
def test_writing_stops_at_the_end_of_the_turn_alone_and_in_a_batch(
    tmp_path: Path, words: torch.Tensor, template: Any, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is made to write the end after three tokens."""
    model = loaded(save_chat_model(tmp_path, template.text, template.special))
    end, generation = model.prompt.end, GenerationConfig(max_new_tokens=12, beams=beams)
    written = _written_ids(model, words, generation, monkeypatch)
    assert all(len(row) > 3 + len(end) for row in written), "without it they go on"
    _write_end(model, end, monkeypatch, after=3)
    rows = _written_ids(model, words, generation, monkeypatch)
    assert all(tuple(row[3 : 3 + len(end)]) == end for row in rows)
    assert all(set(row[3 + len(end) :]) <= {model.tokenizer.eos_token_id} for row in rows)
    together = model.generate(words, COUNTS, LANGUAGES, generation)
    assert together == [model.tokenizer.decode(row[:3], skip_special_tokens=True).strip() for row in rows]
    parts = words.split(COUNTS.tolist())
    alone = [model.generate(p, torch.tensor([len(p)]), ["German"], generation)[0] for p in parts]
    assert alone == together


def _write_end(
    model: LanguageModel, end: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, *, after: int
) -> None:
    """Make a model write a sequence of tokens after its first ``after`` tokens."""
    forward, state = model.model.lm_head.forward, {"step": 0}
    generate = model.model.generate

    def forced(hidden: torch.Tensor) -> torch.Tensor:
        logits = forward(hidden)
        place = state["step"] - after
        if 0 <= place < len(end):
            logits[..., end[place]] += 1e4
        state["step"] += 1
        return logits

    def begin(**options: Any) -> Any:
        state["step"] = 0
        return generate(**options)

    monkeypatch.setattr(model.model.lm_head, "forward", forced)
    monkeypatch.setattr(model.model, "generate", begin)


def _written_ids(
    model: LanguageModel, words: torch.Tensor, generation: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> list[list[int]]:
    rows: list[list[int]] = []
    generate = model.model.generate

    def noted(**options: Any) -> Any:
        written = generate(**options)
        rows.extend(getattr(written, "sequences", written).tolist())
        return written

    with monkeypatch.context() as patched:
        patched.setattr(model.model, "generate", noted)
        model.generate_candidates(words, COUNTS, LANGUAGES, generation)
    return rows


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_template_that_cannot_be_used_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    folder = save_chat_model(tmp_path, BROKEN[name])
    with pytest.raises(UsageError, match="chat template") as raised:
        loaded(folder).prompt.context_tokens("German")
    assert "chat False" in str(raised.value)
    assert loaded(folder, chat=False).prompt.context_tokens("German")[1]


def test_of_several_templates_the_default_or_the_only_or_the_named_one_is_taken(tmp_path: Path) -> None:
    two = {"rag": SEVERAL_TOKENS.text, "tool_use": CHATML.text}
    folder = save_chat_model(tmp_path / "two", two, CHATML.special)
    with pytest.raises(UsageError, match="rag, tool_use") as raised:
        loaded(folder)
    assert "chat False" in str(raised.value)
    assert loaded(folder, chat_template="tool_use").prompt.template.text == CHATML.text
    assert loaded(folder, chat_template=QWEN3.text).prompt.template.text == QWEN3.text
    (tmp_path / "own.jinja").write_text(SEVERAL_TOKENS.text)
    own = loaded(folder, chat_template=str(tmp_path / "own.jinja"))
    assert own.prompt.template.text == SEVERAL_TOKENS.text
    with pytest.raises(UsageError, match="no chat template 'chat'"):
        loaded(folder, chat_template="chat")
    default = {"default": CHATML.text, "rag": SEVERAL_TOKENS.text}
    with_default = save_chat_model(tmp_path / "default", default, CHATML.special)
    assert loaded(with_default).prompt.template.text == CHATML.text
    with pytest.raises(UsageError, match="no chat template"):
        loaded(save_chat_model(tmp_path / "none", None), chat=True)


def test_the_day_of_a_template_is_that_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_chat_model(tmp_path, LLAMA3.text, LLAMA3.special)
    then = loaded(folder, date="2024-05-06").prompt
    assert "06 May 2024" in then.tokenizer.decode(then.context_tokens("German")[0])
    assert then.recorded_settings()["date"] == "2024-05-06"
    today = _Day(2031, 7, 8)
    monkeypatch.setattr("signllm.models.language_model.prompt.date", today)
    first = loaded(folder).prompt
    assert "08 Jul 2031" in first.tokenizer.decode(first.context_tokens("German")[0])
    recorded = first.recorded_settings()
    assert recorded["date"] == "2031-07-08"
    monkeypatch.setattr("signllm.models.language_model.prompt.date", _Day(2040, 1, 1))
    assert loaded(folder, **recorded).prompt.context_tokens("German") == first.context_tokens("German")
    assert loaded(folder).prompt.context_tokens("German") != first.context_tokens("German")
    plain = save_chat_model(tmp_path / "plain", CHATML.text, CHATML.special)
    assert loaded(plain).prompt.recorded_settings()["date"] is None, (
        "runs of two days are alike but for the template"
    )
    with pytest.raises(UsageError, match=r"date is '6\. Mai'"):
        LanguageModelConfig(date="6. Mai")


class _Day:
    def __init__(self, *day: int) -> None:
        self.day = date(*day)

    def today(self) -> date:
        return self.day

    fromisoformat = staticmethod(date.fromisoformat)


def test_thinking_can_be_left_to_the_template(tmp_path: Path) -> None:
    folder = save_chat_model(tmp_path, QWEN3.text, QWEN3.special)
    left = loaded(folder, thinking="template").prompt
    assert left.tokenizer.decode(left.context_tokens("German")[1]) == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("text", "closing"),
    [
        ("<think>\n", "\n</think>\n\n"),
        ("<think>", "\n\n</think>\n\n"),
        ("<think>\n\n</think>\n\n", ""),
        ("assistant\n<seed:think>Well,", "\n\n</seed:think>\n\n"),
        ("<|START_THINKING|>", "\n\n<|END_THINKING|>\n\n"),
        ("<|START_THINKING|><|END_THINKING|>", ""),
        ("◁think▷", "\n\n◁/think▷\n\n"),
        ("<thinking></thinking><thinking>\n", "\n</thinking>\n\n"),
        ("assistant\n", ""),
    ],
)
def test_an_open_thought_is_closed(text: str, closing: str) -> None:
    assert close_reasoning(text) == closing


def test_decisions_give_the_same_prompt_and_end_although_the_folder_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_chat_model(tmp_path, QWEN3.text, QWEN3.special)
    first = loaded(folder).prompt
    recorded = first.recorded_settings()
    assert recorded["end_of_turn"] == "<|im_end|>"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = SEVERAL_TOKENS.text
    tokenizer.save_pretrained(folder)
    with caplog.at_level("WARNING"):
        again = loaded(folder, **recorded).prompt
    assert (again.context_tokens("German"), again.end) == (first.context_tokens("German"), first.end)
    assert str(folder) in caplog.text
    assert loaded(folder).prompt.context_tokens("German") != first.context_tokens("German")
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    assert loaded(folder, **recorded).prompt.context_tokens("German") == first.context_tokens("German")


def test_a_run_without_a_template_does_not_take_one_that_appears_later(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "qwen3")
    first = loaded(folder).prompt
    recorded = first.recorded_settings()
    assert recorded == {"chat": False, "end_of_turn": "</s>"}
    (folder / "chat_template.jinja").write_text(CHATML.text)
    assert loaded(folder).prompt.chat
    again = loaded(folder, **recorded).prompt
    assert (again.context_tokens("German"), again.end) == (first.context_tokens("German"), first.end)


def test_an_older_run_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    """Its texts ended with the tokenizer's end token, and a thought was left open."""
    folder = save_chat_model(tmp_path, QWEN3.text, QWEN3.special)
    older = LanguageModelConfig(path=str(folder), dtype="fp32").with_older_defaults()
    prompt = build_prompt(older, AutoTokenizer.from_pretrained(folder), "llama")
    assert prompt.end == (prompt.tokenizer.eos_token_id,)
    assert (
        prompt.tokenizer.decode(prompt.context_tokens("German")[1]) == "<|im_end|>\n<|im_start|>assistant\n"
    )
    recorded = LanguageModelConfig(path=str(folder), **loaded(folder).prompt.recorded_settings())
    assert recorded.with_older_defaults() == recorded


def test_marks_are_unlikely_in_a_template() -> None:
    marks = {chat_template.SIGNS, chat_template.ANSWER, chat_template.QUESTION}
    assert len(marks) == 3
    assert all(mark.isdigit() and len(mark) == 12 for mark in marks)
