"""Before stage 3 trains: record everything that decides its prompts, and refuse what cannot work.

The chat template, the date that it prints, how thinking is disabled and what ends a text are taken from the
language model's folder and the clock when a run begins, and from the run's own ``config.json`` ever after.
The tokenizer is tried on the training texts, because a text that it does not know cannot be learnt.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from signllm.config import FinetuneConfig, load_config
from signllm.data.shards.index import Split
from signllm.errors import UsageError
from signllm.models.language_model.builder import build_prompt
from signllm.models.language_model.encoder_decoder_model import decoder_start
from signllm.models.language_model.language_model import LanguageModelConfig
from signllm.models.language_model.loading import DTYPES, check_attention, load_tokenizer, read_configuration
from signllm.models.language_model.model_files import model_folder, require_safetensors
from signllm.models.language_model.weight_quantization import (
    prequantized_loading_options,
    quantized_loading_options,
)
from signllm.training.engine import deepspeed_settings

MOST_TEXTS = 2000
"""Number of training texts that the tokenizer is tried on, evenly spread over the split."""
REFUSED, WARNED = 0.5, 0.01
"""Shares of unknown text above which a run is refused, and above which a warning is logged."""
log = logging.getLogger(__name__)


def resolve_language_model(
    config: FinetuneConfig, run: Path, split: Split, *, world: int
) -> LanguageModelConfig:
    """Return the language model's settings with everything filled in that decides a prompt (one rank).

    Args:
        config: configuration of stage 3.
        run: the run folder; if training has begun there, its recorded settings are used.
        split: the training split.
        world: number of ranks.

    Raises:
        UsageError: files are missing, damaged or LFS pointers, a quantised model would be partitioned, the
            chat template fails, a language has no code, or the tokenizer does not know the texts.
    """
    model = _with_record(config.sign_llm.language_model, run)
    settings = read_configuration(model.path)
    is_partitioned = deepspeed_settings(config.training, world=world)["zero_optimization"]["stage"] == 3
    check_attention(model.attention, dtype=model.dtype)
    quantized_loading_options(model.quantize, dtype=DTYPES[model.dtype], is_partitioned=is_partitioned)
    prequantized_loading_options(settings, model.path, quantize=model.quantize, is_partitioned=is_partitioned)
    require_safetensors(model_folder(model.path), model.path)
    tokenizer = load_tokenizer(model.path)
    prompt = build_prompt(model, tokenizer, settings.model_type)
    for language in split.samples.languages():
        prompt.context_tokens(language)
        if settings.is_encoder_decoder:
            decoder_start(tokenizer, settings, language)
    samples = split.samples
    places = range(0, len(samples), max(1, len(samples) // MOST_TEXTS))
    check_texts(tokenizer, [samples[place].text for place in places], model)
    return replace(model, **prompt.recorded_settings())


def _with_record(model: LanguageModelConfig, run: Path) -> LanguageModelConfig:
    """Return the settings, with unset ones taken from the run if training has begun there."""
    has_begun = any(run.glob("**/checkpoints/step-*/COMPLETE"))
    if not has_begun or not (run / "config.json").is_file():
        return model
    begun = load_config(run, FinetuneConfig).sign_llm.language_model.with_older_defaults()
    names = ("chat", "chat_template", "date", "thinking", "end_of_turn")
    options = {name: getattr(model, name) for name in names if getattr(model, name) is not None}
    return replace(model, **({name: getattr(begun, name) for name in names} | options))


@dataclass(frozen=True)
class Coverage:
    """How a tokenizer reads texts.

    Attributes:
        unknown_tokens: share of the tokens that stand for something unknown.
        unknown_characters: share of the characters that such tokens stand for.
        changed: share of the texts that are known but differ after encoding and decoding.
        example: such a text, before and after.
        lengths: number of tokens of each text.
    """

    unknown_tokens: float
    unknown_characters: float
    changed: float
    example: tuple[str, str] | None
    lengths: tuple[int, ...]


def tokenizer_coverage(tokenizer: Any, texts: Sequence[str]) -> Coverage:
    """Return how a tokenizer reads texts; tokens of spaces alone do not count."""
    tokens = unknown = characters = unknown_characters = changed = 0
    example, lengths = None, []
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
        ids = encoded["input_ids"]
        lengths.append(len(ids))
        missing = [place for place, token in enumerate(ids) if token == tokenizer.unk_token_id]
        blank = sum(not name.strip("▁Ġ ") for name in tokenizer.convert_ids_to_tokens(ids))
        tokens, unknown = tokens + len(ids) - blank, unknown + len(missing)
        characters += len("".join(text.split()))
        if missing and tokenizer.is_fast:
            spans = [encoded["offset_mapping"][place] for place in missing]
            unknown_characters += sum(len("".join(text[begin:end].split())) for begin, end in spans)
        elif not missing:
            again = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if _without_spaces(again) != _without_spaces(text):
                changed += 1
                example = example or (text, again)
    return Coverage(
        unknown_tokens=unknown / max(tokens, 1),
        unknown_characters=unknown_characters / max(characters, 1),
        changed=changed / max(len(texts), 1),
        example=example,
        lengths=tuple(lengths),
    )


def check_texts(tokenizer: Any, texts: Sequence[str], model: LanguageModelConfig) -> None:
    """Encode and decode training texts with a tokenizer, and log what is lost.

    Raises:
        UsageError: more than half of the text is unknown to the tokenizer.
    """
    counts = tokenizer_coverage(tokenizer, [text for text in texts if text.strip()])
    share = max(counts.unknown_tokens, counts.unknown_characters)
    if share > WARNED:
        what = (
            f"{_percent(counts.unknown_tokens)} of the training texts' tokens are unknown to this tokenizer"
            f" ({_percent(counts.unknown_characters)} of their characters)"
        )
        if share > REFUSED:
            raise UsageError(
                what,
                where=model.path,
                remedy="choose a language model that was trained on this language",
            )
        log.warning("%s: %s; the model can neither learn nor write them", model.path, what)
    if counts.changed > WARNED and counts.example is not None:
        log.warning(
            "%s: %s of the training texts are not what the tokenizer reads back: %r becomes %r; translations "
            "will be written like that, and scored against the text as it is",
            model.path,
            _percent(counts.changed),
            *counts.example,
        )
    cut = sum(length > model.max_text_tokens for length in counts.lengths)
    if cut > WARNED * len(counts.lengths):
        log.warning(
            "%d of %d training texts are longer than language_model.max_text_tokens, %d, and are cut; the "
            "longest has %d tokens",
            cut,
            len(counts.lengths),
            model.max_text_tokens,
            max(counts.lengths),
        )


def _without_spaces(text: str) -> str:
    """Return a text in normal form without spaces, which tokenizers treat in their own ways."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
