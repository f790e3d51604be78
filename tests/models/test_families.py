"""Language models of many families behind one interface: each against a plain run of one text at a time."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from signllm.errors import UsageError
from signllm.languages import find_language
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.encoder_decoder_model import decoder_start, is_code, language_codes
from signllm.models.language_model.language_model import (
    GenerationConfig,
    LanguageModel,
    LanguageModelConfig,
    LoraConfig,
)
from signllm.models.language_model.prompt import TRANSLATED, Prompt, find_family
from tests.models import on_ranks, parts
from tests.models.families import CAUSAL, ENCODER_DECODER, save_family

COUNTS = torch.tensor([3, 1])
TEXTS = ["rain in the north", "sun"]
LANGUAGES = ["German", "English"]
EVERY = [*CAUSAL, *ENCODER_DECODER]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_family(tmp_path_factory.mktemp(name), name) for name in EVERY}


@pytest.fixture
def words() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 16)


def loaded(folder: Path, **changes: object) -> LanguageModel:
    return build_language_model(LanguageModelConfig(**{"path": str(folder), "dtype": "fp32"} | changes))


def ids_of(folder: Path, text: str) -> list[int]:
    return list(AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", list(CAUSAL))
def test_a_causal_model_scores_a_text_as_a_run_of_it_alone_without_padding(
    folders: dict[str, Path], name: str, words: torch.Tensor
) -> None:
    result = loaded(folders[name])(words, COUNTS, TEXTS, LANGUAGES)
    plain, table = AutoModelForCausalLM.from_pretrained(folders[name]), None
    table = plain.get_input_embeddings()
    for place, part in enumerate(words.split(COUNTS.tolist())):
        prompt = ids_of(folders[name], f"Translate this sign language into {LANGUAGES[place]}:")
        text = torch.tensor([*ids_of(folders[name], TEXTS[place]), 1])
        embedded = torch.cat([table(torch.tensor([0, *prompt])), part, table(text)])[None]
        logits = plain(inputs_embeds=embedded).logits[0, -len(text) - 1 : -1]
        expected = functional.cross_entropy(logits, text, reduction="sum")
        torch.testing.assert_close(result.losses[place], expected, rtol=1e-4, atol=1e-4)
        assert result.places[place] == embedded.shape[1]


STARTS = {"t5": [3], "flan-t5": [3], "mt5": [3], "mbart50": [1, 4], "mbart": [4]}
"""Start of the decoder for German: T5's padding token, mBART-50's end token and code, mBART's code."""


@pytest.mark.parametrize("name", list(ENCODER_DECODER))
def test_an_encoder_decoder_scores_a_text_as_a_run_of_it_alone_without_padding(
    folders: dict[str, Path], name: str, words: torch.Tensor
) -> None:
    languages = ["German", "German"]
    result = loaded(folders[name])(words, COUNTS, TEXTS, languages)
    plain = AutoModelForSeq2SeqLM.from_pretrained(folders[name])
    table = plain.get_input_embeddings()
    for place, part in enumerate(words.split(COUNTS.tolist())):
        prompt = [] if "mbart" in name else ids_of(folders[name], "translate sign language to German: ")
        before = [table(torch.tensor(prompt))] if prompt else []
        source = torch.cat([*before, part, table(torch.tensor([1]))])[None]
        text = [*ids_of(folders[name], TEXTS[place]), 1]
        sequence = torch.tensor([*STARTS[name], *text])
        logits = plain(inputs_embeds=source, decoder_input_ids=sequence[None, :-1]).logits[0, -len(text) :]
        expected = functional.cross_entropy(logits, torch.tensor(text), reduction="sum")
        torch.testing.assert_close(result.losses[place], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_gradient_reaches_the_words_and_nothing_of_the_model_learns(
    folders: dict[str, Path], name: str, words: torch.Tensor
) -> None:
    model = loaded(folders[name], gradient_checkpointing=True).train()
    result = model(words.requires_grad_(), COUNTS, TEXTS, LANGUAGES)
    result.losses.sum().backward()
    assert (words.grad.abs().sum(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert result.operations > 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", EVERY)
def test_what_is_written_does_not_depend_on_the_batch(
    folders: dict[str, Path], name: str, words: torch.Tensor, beams: int
) -> None:
    model, generation = loaded(folders[name]), GenerationConfig(beams=beams, max_new_tokens=8)
    together = model.generate(words, COUNTS, LANGUAGES, generation)
    alone = [
        model.generate(part, torch.tensor([len(part)]), [language], generation)[0]
        for part, language in zip(words.split(COUNTS.tolist()), LANGUAGES, strict=True)
    ]
    assert together == alone
    assert any(together)
    assert not any("de_DE" in text or "</s>" in text for text in together)


@pytest.mark.parametrize("name", EVERY)
def test_adapters_find_their_layers_in_every_family(
    folders: dict[str, Path], name: str, words: torch.Tensor
) -> None:
    model = loaded(folders[name], lora=LoraConfig(rank=2)).train()
    result = model(words, COUNTS, TEXTS, LANGUAGES)
    plain = loaded(folders[name])(words, COUNTS, TEXTS, LANGUAGES)
    torch.testing.assert_close(result.losses, plain.losses)
    result.losses.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert any(p.grad.abs().max() > 0 for p in trained)


@pytest.mark.parametrize("name", EVERY)
def test_the_sampled_embeddings_are_what_the_model_would_read(folders: dict[str, Path], name: str) -> None:
    model = loaded(folders[name])
    torch.testing.assert_close(
        model.sample_embeddings(3), model.embed([0, (model_rows(model) - 1) // 2, model_rows(model) - 1])
    )


def model_rows(model: LanguageModel) -> int:
    return len(model.model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["gpt2", "flan-t5", "mbart50"])
def test_sign_llm_trains_and_translates_with_any_kind(folders: dict[str, Path], name: str) -> None:
    model = on_ranks.sign_llm(folders[name]).train()
    batch = parts.batch_of()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        shares = model(batch)
        shares["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(shares["l_sim"]))
    assert losses[-1] < losses[0]
    texts = model.eval().generate(batch, GenerationConfig(max_new_tokens=8))
    assert len(texts) == len(batch.texts)


def test_a_chat_template_surrounds_the_signs(tmp_path: Path, words: torch.Tensor) -> None:
    folder = save_family(tmp_path, "qwen3", chat=True)
    prompt_tokens = loaded(folder).prompt.context_tokens("German")
    decoded = [AutoTokenizer.from_pretrained(folder).decode(ids) for ids in prompt_tokens]
    assert decoded == ["<s> user Translate this sign language into German :", "</s> model"]
    assert loaded(folder, chat=False).prompt.context_tokens("German")[1] == []
    loaded(folder)(words, COUNTS, TEXTS, LANGUAGES)
    with pytest.raises(UsageError, match="no chat template"):
        loaded(save_family(tmp_path / "plain", "qwen3"), chat=True)


def test_a_prompt_in_the_language_of_the_text(tmp_path: Path) -> None:
    """By name or by code, also inside a chat template."""

    class Spelt:
        bos_token_id, chat_template = None, None

        def __call__(self, text: str, **_: object) -> dict[str, str]:
            return {"input_ids": text}

    def asked(language: str, model_type: str = "llama", *, in_target: bool = True) -> str:
        family = find_family(model_type)
        options = {"text": None, "separator": None, "chat": None, "in_target": in_target}
        return "".join(Prompt(Spelt(), family, **options).context_tokens(language)[0])

    assert asked("German") == asked("de") == asked("de_DE") == "Übersetze diese Gebärdensprache ins Deutsche:"
    assert asked("Chinese") == "将这段手语翻译成中文："
    assert asked("English") == asked("English", in_target=False)
    assert asked("German", in_target=False) == "Translate this sign language into German:"
    assert asked("German", "t5") == "translate sign language to German: "
    assert asked("German", "mbart") == ""
    with pytest.raises(UsageError, match="no prompt in the language 'Klingon'"):
        asked("Klingon")
    assert all(find_language(code).code == code for code in TRANSLATED)
    assert len(set(TRANSLATED.values())) == len(TRANSLATED)
    folder = save_family(tmp_path, "qwen3", chat=True)
    before, _ = loaded(folder, prompt_language="target").prompt.context_tokens("German")
    assert before != loaded(folder).prompt.context_tokens("German")[0]
    with pytest.raises(UsageError, match="prompt_language is target"):
        LanguageModelConfig(prompt="Translate", prompt_language="target")


def test_a_template_that_hides_what_the_user_says_is_refused(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_family(tmp_path, "qwen3", chat=True))
    tokenizer.chat_template = "hello"
    prompt = Prompt(tokenizer, find_family("qwen3"), text=None, separator=None, chat=None)
    with pytest.raises(UsageError, match="leaves out the user's message"):
        prompt.context_tokens("German")


@pytest.mark.parametrize("name", ["llama", "mbart"])
def test_sign_words_beyond_the_limit_of_the_model_are_cut_with_a_warning_or_refused(
    folders: dict[str, Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    long = torch.randn(101, 16)
    counts = torch.tensor([100, 1])
    with caplog.at_level(logging.WARNING):
        model = loaded(folders[name])
        result = model(long, counts, TEXTS, ["German"] * 2)
        assert "words are cut" in caplog.text
        model.generate(long, counts, ["German"] * 2, GenerationConfig(max_new_tokens=4))
    assert caplog.text.count("words are cut") == 1, "once is enough"
    written = len(TEXTS[0].split()) + 1
    assert result.places[0] == (64 if name == "llama" else 64 + written), "the decoder has places of its own"
    with pytest.raises(UsageError, match="64 positions"):
        loaded(folders[name], too_long="error")(long, counts, TEXTS, ["German"] * 2)


def test_a_prompt_that_leaves_no_room_for_signs_is_refused(folders: dict[str, Path]) -> None:
    model = loaded(folders["llama"], prompt="sign " * 64)
    with pytest.raises(UsageError, match="1 sign words, prompt and text do not fit"):
        model(torch.randn(1, 16), COUNTS[1:], TEXTS[:1], ["German"])


def test_a_model_that_was_fetched_from_the_hub_goes_by_its_name(
    folders: dict[str, Path], words: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    kept = tmp_path / "models--google--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    shutil.copytree(folders["t5"], kept / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    by_name = build_language_model(LanguageModelConfig(path="google/tiny", dtype="fp32"))
    result = by_name(words, COUNTS, TEXTS, LANGUAGES)
    torch.testing.assert_close(result.losses, loaded(folders["t5"])(words, COUNTS, TEXTS, LANGUAGES).losses)


def test_a_model_of_relative_positions_reads_any_length(folders: dict[str, Path]) -> None:
    result = loaded(folders["t5"])(torch.randn(200, 16), torch.tensor([200]), TEXTS[:1], ["German"])
    assert result.places[0] > 200


def test_languages_have_the_codes_that_multilingual_models_know(folders: dict[str, Path]) -> None:
    assert all(map(is_code, ["de_DE", "__de__", "en_XX", "deu_Latn"]))
    assert not any(map(is_code, ["<pad>", "</s>", "<extra_id_0>", "<mask>", "[CLS]"]))
    assert not any(map(is_code, ["<extra_id_0>", "__", "<2de>", "zho"]))
    model = loaded(folders["mbart50"])
    assert model._start("English") == model._start("en") == model._start("en_US") == [1, 5]
    with pytest.raises(UsageError, match="no code for the language 'Klingon'"):
        model._start("Klingon")


CODED = {
    "nllb": {
        "deu_Latn": ("German", "de", "de_DE", "Deutsch", "deu_Latn", "GERMAN"),
        "eng_Latn": ("English", "en-US"),
    }
    | {"zho_Hans": ("Chinese", "zh_CN", "Mandarin", "Chinese (Simplified)", "csl")}
    | {"zho_Hant": ("zh-TW", "Traditional Chinese"), "kin_Latn": ("kin_Latn", "kin", "Kinyarwanda", "rw")}
    | {"ace_Arab": ("ace", "ACE_ARAB")},
    "m2m100": {"__de__": ("German", "deu", "__de__"), "__en__": ("English",), "__zh__": ("Chinese", "zh_TW")}
    | {"__ast__": ("ast",)},
    "mbart50": {"de_DE": ("German", "de_AT", "deu_Latn"), "en_XX": ("English", "eng", "en_GB")},
}
"""Spellings of languages by the code that each model has for them."""


@pytest.mark.parametrize("name", list(CODED))
def test_the_decoder_starts_with_the_models_code_for_a_language(name: str, tmp_path: Path) -> None:
    model = loaded(save_family(tmp_path, name))
    for code, spellings in CODED[name].items():
        expected = [1, model.tokenizer.convert_tokens_to_ids(code)]
        assert {spelling: model._start(spelling) for spelling in spellings} == dict.fromkeys(
            spellings, expected
        )
    with pytest.raises(UsageError, match="no code for the language 'Germn'") as raised:
        model._start("Germn")
    assert "German" in str(raised.value.remedy), "the nearest name"
    with pytest.raises(UsageError, match="no code for the language 'Tibetan'"):
        model._start("Tibetan")


@pytest.mark.parametrize("name", ["nllb", "m2m100"])
def test_a_model_of_codes_writes_alone_as_in_a_batch_and_as_it_is_trained(
    name: str, tmp_path: Path, words: torch.Tensor
) -> None:
    """The languages of a batch may differ, and no text shows the code that it began with."""
    model = loaded(save_family(tmp_path, name))
    languages = ["German", "Chinese"]
    result = model(words, COUNTS, TEXTS, languages)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for place, part in enumerate(words.split(COUNTS.tolist())):
        source = torch.cat([part, plain.get_input_embeddings()(torch.tensor([1]))])[None]
        text = [*ids_of(tmp_path, TEXTS[place]), 1]
        sequence = torch.tensor([*model._start(languages[place]), *text])
        logits = plain(inputs_embeds=source, decoder_input_ids=sequence[None, :-1]).logits[0, -len(text) :]
        expected = functional.cross_entropy(logits, torch.tensor(text), reduction="sum")
        torch.testing.assert_close(result.losses[place], expected, rtol=1e-4, atol=1e-4)
    for settings in (GenerationConfig(max_new_tokens=6), GenerationConfig(max_new_tokens=6, beams=3)):
        together = model.generate(words, COUNTS, languages, settings)
        for place, part in enumerate(words.split(COUNTS.tolist())):
            alone = model.generate(part, torch.tensor([len(part)]), [languages[place]], settings)
            assert alone == [together[place]]
        assert not any(code in text for text in together for code in ("_Latn", "_Hans", "__"))


def test_language_codes_outside_the_special_tokens_are_recognized() -> None:
    """M2M100's own tokenizer lists its codes neither as special nor as added tokens."""

    class Kept:
        all_special_tokens = ("<s>", "</s>")
        lang_token_to_id: ClassVar[dict[str, int]] = {"__de__": 7, "__en__": 8}
        eos_token_id = 2

        def get_added_vocab(self) -> dict[str, int]:
            return {"<s>": 0, "</s>": 2}

        def convert_tokens_to_ids(self, token: str) -> int:
            return self.lang_token_to_id[token]

    class Settings:
        decoder_start_token_id, pad_token_id = 2, 1

    assert language_codes(Kept()) == ["__de__", "__en__"]
    assert decoder_start(Kept(), Settings(), "German") == [2, 7]
