"""A run records what decides its prompts, keeps to it on any day, and is refused where it cannot learn."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from signllm.config import FinetuneConfig, load_config
from signllm.data.loading.mixture import open_mixture
from signllm.errors import UsageError
from signllm.inference.export import export
from signllm.stages.finetune import finetune
from signllm.stages.language_model_settings import check_texts, resolve_language_model, tokenizer_coverage
from signllm.stages.trained_model import load_sign_llm, read_trained_model
from signllm.training.checkpoint import load_weights
from signllm.training.training_log import read_log
from tests.models.chat_templates import BROKEN, CHATML, LLAMA3, PHI3, QWEN3
from tests.models.families import save_chat_model, save_family
from tests.stages import path

FIRST_DAY, LATER = date(2030, 1, 2), date(2031, 3, 4)


def config_of(llm: Path, **changes: Any) -> FinetuneConfig:
    """Two epochs on recorded characters, three steps each."""
    training = {
        key: changes.pop(key) for key in ("steps", "epochs", "deepspeed", "save_every") if key in changes
    }
    config = path.finetune_config(llm, **({"epochs": 2} | training))
    model = replace(config.sign_llm.language_model, prompt=None, separator=None, **changes)
    return replace(config, sign_llm=replace(config.sign_llm, language_model=model))


def trained(composed: Path, config: FinetuneConfig, run: Path) -> Path:
    finetune(config, run=run, init=composed / "pretrain", dataset=open_mixture(composed / "shards"))
    return run


def on_day(day: date, monkeypatch: pytest.MonkeyPatch) -> None:
    class Day(date):
        @classmethod
        def today(cls) -> date:
            return day

    monkeypatch.setattr("signllm.models.language_model.prompt.date", Day)


@pytest.fixture(scope="module")
def dated(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose template prints the day, and an uninterrupted run of the first day with it."""
    folder = tmp_path_factory.mktemp("dated")
    llm = save_chat_model(folder / "llm", LLAMA3.text, LLAMA3.special)
    with pytest.MonkeyPatch.context() as patched:
        on_day(FIRST_DAY, patched)
        trained(composed, config_of(llm), folder / "run")
    return llm, folder / "run"


def recorded(run: Path) -> Any:
    return load_config(run, FinetuneConfig).sign_llm.language_model


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run) if "loss" in line]


def test_the_run_records_what_decides_its_prompts(dated: tuple[Path, Path]) -> None:
    model = recorded(dated[1])
    assert (model.chat, model.chat_template, model.thinking) == (True, LLAMA3.text, "off")
    assert (model.date, model.end_of_turn) == ("2030-01-02", "<|eot_id|>")


def test_a_run_resumed_on_another_day_with_another_template_is_the_uninterrupted_one(
    composed: Path, dated: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = Path(shutil.copytree(dated[0], tmp_path / "llm"))
    on_day(FIRST_DAY, monkeypatch)
    run = trained(composed, config_of(llm, steps=3), tmp_path / "run")
    on_day(LATER, monkeypatch)
    (llm / "chat_template.jinja").write_text(PHI3.text)
    trained(composed, config_of(llm), run)
    assert losses(run) == losses(dated[1])
    assert recorded(run).date == "2030-01-02"
    uninterrupted, resumed = load_weights(dated[1]), load_weights(run)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in uninterrupted.items())
    with pytest.raises(UsageError, match=r"date: 2030-01-02 -> 2031-03-04"):
        trained(composed, config_of(llm, date="2031-03-04"), run)


def test_another_day_is_another_run(
    composed: Path, dated: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test before: the day does change what the model reads."""
    on_day(LATER, monkeypatch)
    assert losses(trained(composed, config_of(dated[0]), tmp_path / "run")) != losses(dated[1])


def test_evaluation_and_export_prompt_as_training_did(
    dated: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    llm, run = dated
    on_day(LATER, monkeypatch)
    prompt = load_sign_llm(run).language_model.prompt
    before, _ = prompt.context_tokens("English")
    assert "02 Jan 2030" in prompt.tokenizer.decode(before)
    changed = Path(shutil.copytree(llm, tmp_path / "llm"))
    (changed / "chat_template.jinja").write_text(PHI3.text)
    (changed / "generation_config.json").write_text(
        json.dumps({"repetition_penalty": 9.0, "eos_token_id": 3})
    )
    with caplog.at_level(logging.WARNING):
        moved = load_sign_llm(run, llm=str(changed)).language_model.prompt
    assert str(changed) in caplog.text
    assert (moved.context_tokens("English"), moved.ends) == (
        prompt.context_tokens("English"),
        prompt.ends,
    )
    out = _exported(run, changed, tmp_path / "out")
    inside = AutoTokenizer.from_pretrained(out / "language-model")
    assert inside.chat_template == LLAMA3.text
    settings = json.loads((out / "language-model" / "generation_config.json").read_text())
    stops = [inside.convert_tokens_to_ids(token) for token in ("<|eot_id|>", "</s>")]
    assert settings["eos_token_id"] == stops
    assert "repetition_penalty" not in settings or settings["repetition_penalty"] in (None, 1.0)
    assert settings["max_new_tokens"] == read_trained_model(run).config.generation.max_new_tokens
    again = load_sign_llm(out).language_model.prompt
    assert (again.context_tokens("English"), again.ends) == (
        prompt.context_tokens("English"),
        prompt.ends,
    )


def _exported(run: Path, llm: Path, out: Path) -> Path:
    """Export a copy of a run whose language model lies elsewhere now."""
    copy = Path(shutil.copytree(run, out.with_name("copy")))
    record = json.loads((copy / "config.json").read_text())
    record["config"]["sign_llm"]["language_model"]["path"] = str(llm)
    (copy / "config.json").write_text(json.dumps(record))
    return export(copy, out, with_llm=True)


def test_a_run_of_before_such_records_goes_on_as_it_was_begun(
    composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = save_chat_model(tmp_path / "llm", QWEN3.text, QWEN3.special)
    run = trained(composed, config_of(llm, steps=3, end_of_turn="", thinking="template"), tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    for name in ("chat", "chat_template", "date", "thinking", "end_of_turn"):
        record["config"]["sign_llm"]["language_model"].pop(name)
    (run / "config.json").write_text(json.dumps(record))
    older = load_sign_llm(run).language_model.prompt
    assert older.ends == [(older.tokenizer.eos_token_id,)]
    assert older.tokenizer.decode(older.context_tokens("English")[1]) == "<|im_end|>\n<|im_start|>assistant\n"
    trained(composed, config_of(llm), run)
    assert (recorded(run).end_of_turn, recorded(run).thinking) == ("</s>", "template")
    through = trained(composed, config_of(llm, end_of_turn="", thinking="template"), tmp_path / "through")
    assert losses(run) == losses(through)


def settled(composed: Path, llm: Path, tmp_path: Path, **changes: Any) -> Any:
    split = open_mixture(composed / "shards").split("train")
    return resolve_language_model(config_of(llm, **changes), tmp_path / "run", split, world=1)


def test_what_cannot_work_is_refused_before_training(composed: Path, tmp_path: Path) -> None:
    for number, text in enumerate(BROKEN.values()):
        folder = save_chat_model(tmp_path / str(number), text)
        with pytest.raises(UsageError, match="chat False"):
            settled(composed, folder, tmp_path)
        assert not settled(composed, folder, tmp_path, chat=False).chat
    folder = save_chat_model(tmp_path / "quantised", CHATML.text, CHATML.special)
    about = json.loads((folder / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match="already quantized") as raised:
        settled(composed, folder, tmp_path, deepspeed="zero3")
    assert "zero2" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_language_without_a_code_is_refused_before_training(tmp_path: Path, composed: Path) -> None:
    folder = save_family(tmp_path / "llm", "mbart50")
    samples = open_mixture(composed / "shards").split("train")
    assert set(samples.samples.languages()) == {"English"}
    resolve_language_model(config_of(folder), tmp_path / "run", samples, world=1)
    videos = path.write_videos(tmp_path / "videos", language="Klingonese")
    with pytest.raises(UsageError, match="no code for the language 'Klingonese'"):
        resolve_language_model(
            config_of(folder), tmp_path / "run", open_mixture(videos).split("train"), world=1
        )


def saved(model: Any, *, normalizer: Any = None, pre: Any = None, decoder: Any = None) -> Any:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    if decoder is not None:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def sentencepiece_like(alphabet: str, *, byte_fallback: bool = False) -> Any:
    """A tokenizer of single letters as T5's is made: unknown letters that follow each other are one token."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in alphabet)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)] if byte_fallback else []
    unigram = models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback)
    after = [decoders.ByteFallback(), decoders.Fuse()] if byte_fallback else []
    spaces = pre_tokenizers.Metaspace(prepend_scheme="always")
    return saved(unigram, pre=spaces, decoder=decoders.Sequence([*after, decoders.Metaspace()]))


LATIN = "abcdefghijklmnopqrstuvwxyzäöüß"
CHINESE = ["今天下雨。", "明天北方有太阳", "他说你好"]


def words_alone(words: str) -> Any:
    vocabulary = {word: place for place, word in enumerate(["<unk>", "</s>", *words.split()])}
    return saved(models.WordLevel(vocabulary, unk_token="<unk>"), pre=pre_tokenizers.Whitespace())


def test_the_unknown_share_is_that_of_tokens_and_of_characters() -> None:
    assert tokenizer_coverage(
        words_alone("rain sun"), ["rain rain sun snow", "rain"]
    ).unknown_tokens == pytest.approx(1 / 5)
    known = tokenizer_coverage(words_alone("rain sun"), ["rain rain sun snow", "rain"])
    assert known.unknown_characters == pytest.approx(4 / 19)
    chinese = tokenizer_coverage(sentencepiece_like(LATIN), CHINESE)
    assert (chinese.unknown_tokens, chinese.unknown_characters) == (1.0, 1.0)
    mixed = tokenizer_coverage(sentencepiece_like(LATIN + "0123456789"), ["2024年12月下雨"])
    assert mixed.unknown_characters == pytest.approx(4 / 10)
    german = tokenizer_coverage(sentencepiece_like(LATIN), ["heute regnet es im süden", "straße"])
    assert (german.unknown_tokens, german.unknown_characters, german.changed) == (0, 0, 0)


def test_bytes_are_never_unknown() -> None:
    byte_level = PreTrainedTokenizerFast(tokenizer_object=_bytes(), unk_token="<unk>", eos_token="</s>")
    for tokenizer in (sentencepiece_like(LATIN, byte_fallback=True), byte_level):
        assert tokenizer_coverage(tokenizer, CHINESE) == replace(
            tokenizer_coverage(tokenizer, CHINESE),
            unknown_tokens=0.0,
            unknown_characters=0.0,
            changed=0.0,
            example=None,
        )


def _bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_texts_unknown_to_the_tokenizer_are_refused_with_their_share(composed: Path) -> None:
    model = config_of(composed / "llm").sign_llm.language_model
    words = words_alone("sonne regen norden")
    texts = ["sonne " + "wolke " * 32]
    with pytest.raises(UsageError, match=r"97 % of the training texts' tokens are unknown"):
        check_texts(words, texts, model)
    with pytest.raises(UsageError, match="100 %") as raised:
        check_texts(sentencepiece_like(LATIN), CHINESE, model)
    assert str(composed / "llm") in str(raised.value)
    assert raised.value.remedy


def test_a_few_unknown_tokens_are_logged(composed: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = config_of(composed / "llm").sign_llm.language_model
    with caplog.at_level(logging.WARNING):
        check_texts(words_alone("sonne regen"), ["sonne regen"] * 9 + ["sonne wolke"], model)
    assert "5 %" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check_texts(words_alone("sonne regen"), ["sonne regen"], model)
        check_texts(words_alone("sonne regen"), ["", " "], model)
        check_texts(words_alone("sonne regen"), [], model)
    assert not caplog.text


@pytest.mark.parametrize(
    ("normalizer", "text", "example"),
    [
        (normalizers.Lowercase(), "Regen im Süden", "regen im süden"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "süden", "suden"),
        (normalizers.NFKC(), "２度", "2度"),
    ],
    ids=["case", "accents", "width"],
)
def test_what_a_tokenizer_does_not_give_back_is_logged_with_an_example(
    composed: Path, caplog: pytest.LogCaptureFixture, normalizer: Any, text: str, example: str
) -> None:
    model = config_of(composed / "llm").sign_llm.language_model
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        ("▁", -1.0),
        *((letter, -2.0) for letter in LATIN + LATIN.upper() + "2度"),
    ]
    tokenizer = saved(
        models.Unigram(pieces, unk_id=0),
        normalizer=normalizer,
        pre=pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoder=decoders.Metaspace(),
    )
    with caplog.at_level(logging.WARNING):
        check_texts(tokenizer, [text], model)
    assert repr(text) in caplog.text
    assert repr(example) in caplog.text


def test_texts_that_are_cut_are_counted(composed: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = config_of(composed / "llm", max_text_tokens=4).sign_llm.language_model
    with caplog.at_level(logging.WARNING):
        check_texts(words_alone("a b"), ["a b"] * 3 + ["a b a b a"], model)
    assert "1 of 4" in caplog.text
    assert "5 tokens" in caplog.text
