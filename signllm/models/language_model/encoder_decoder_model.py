"""A frozen encoder-decoder language model as the generator of translations.

The encoder reads the sequence: prompt, sign words, separator, [end token]. The decoder generates the text. It
begins with the tokens that its family expects: T5 with a start token, mBART and similar models with the code
of the target language.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from signllm.errors import UsageError
from signllm.languages import find_language, nearest_names
from signllm.models.language_model.generation import Candidate, GenerationConfig
from signllm.models.language_model.language_model import (
    IGNORED,
    LanguageModel,
    ReferenceScores,
    pad_rows,
    sum_token_losses,
)
from signllm.models.operation_counts import encoder_decoder_cost


class EncoderDecoderLanguageModel(LanguageModel):
    """A model of ``AutoModelForSeq2SeqLM``, such as T5 or mBART; see :class:`LanguageModel`."""

    kind = "encoder-decoder"

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.cost = encoder_decoder_cost(self.model)

    def forward(
        self, words: Tensor, counts: Tensor, texts: Sequence[str], languages: Sequence[str]
    ) -> ReferenceScores:
        """Compute the losses of reference texts; inputs of encoder and decoder are padded at the end."""
        embedded, mask = pad_rows(self._sources(words, counts, languages))
        starts = [self._start(name) for name in languages]
        tokens = [
            self._text_tokens(text, room=self._room(start)) for text, start in zip(texts, starts, strict=True)
        ]
        longest = max(len(start) + len(ids) - 1 for start, ids in zip(starts, tokens, strict=True))
        inputs = torch.full((len(texts), longest), self.tokenizer.eos_token_id, dtype=torch.int64)
        targets, inputs_mask = torch.full_like(inputs, IGNORED), torch.zeros_like(inputs)
        for place, (start, ids) in enumerate(zip(starts, tokens, strict=True)):
            sequence = torch.tensor([*start, *ids])
            inputs[place, : len(sequence) - 1] = sequence[:-1]
            inputs_mask[place, : len(sequence) - 1] = 1
            targets[place, len(start) - 1 : len(sequence) - 1] = torch.tensor(ids)
        targets = targets.to(words.device)
        logits = self.model(
            inputs_embeds=embedded,
            attention_mask=mask,
            decoder_input_ids=inputs.to(words.device),
            decoder_attention_mask=inputs_mask.to(words.device),
            use_cache=False,
        ).logits
        read, written = mask.sum(dim=1).tolist(), inputs_mask.sum(dim=1).tolist()
        return ReferenceScores(
            sum_token_losses(logits, targets),
            (targets != IGNORED).sum(dim=1),
            [source + target for source, target in zip(read, written, strict=True)],
            self.cost.operations(read, written),
        )

    @torch.no_grad()
    def generate_candidates(
        self,
        words: Tensor,
        counts: Tensor,
        languages: Sequence[str],
        generation: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> list[tuple[Candidate, ...]]:
        """Generate the candidate translations of every video."""
        embedded, mask = pad_rows(self._sources(words, counts, languages))
        starts = [self._start(name) for name in languages]
        inputs = {
            "inputs_embeds": embedded,
            "attention_mask": mask,
            "decoder_input_ids": torch.tensor(starts, device=words.device),
        }
        return self._run_generation(inputs, generation, seeds, room=self._room(starts[0]))

    def _sources(self, words: Tensor, counts: Tensor, languages: Sequence[str]) -> list[Tensor]:
        """Return the encoder's input (L, E) of each video."""
        end = self.embed([self.tokenizer.eos_token_id])
        rows = self._embed_prompts(words, counts, languages, rooms=[len(end)] * len(languages))
        return [torch.cat([row, end]) for row in rows]

    def _room(self, start: list[int]) -> int | None:
        """Return how many tokens the decoder can generate after its start; None if there is no limit."""
        return None if self.limit is None else self.limit - len(start) + 1

    def _start(self, language: str) -> list[int]:
        return decoder_start(self.tokenizer, self.model.config, language)


def decoder_start(tokenizer: Any, config: Any, language: str) -> list[int]:
    """Return the tokens that a decoder begins with to generate text in a language.

    A model with language codes (``de_DE``, ``__de__``, ``deu_Latn``) begins with the code of the language. If
    its configuration names the end token as start token (mBART-50, M2M100, NLLB), the end token precedes the
    code. Other models (T5) begin with the start token of the configuration.

    Raises:
        UsageError: the model has language codes, but none for this language.
    """
    start = config.decoder_start_token_id
    codes = language_codes(tokenizer)
    if not codes:
        return [config.pad_token_id if start is None else start]
    token = _find_code(language, codes)
    if token is None:
        near = [name for name in nearest_names(language) if _find_code(name, codes)]
        raise UsageError(
            f"this model has no code for the language {language!r}",
            where=f"its {len(codes)} codes are {', '.join(codes[:4])} ...",
            remedy="name the language in the annotations by its English name, as "
            + (" or ".join(near) if near else "in German")
            + ", or by one of the model's codes",
        )
    code = tokenizer.convert_tokens_to_ids(token)
    return [start, code] if start == tokenizer.eos_token_id else [code]


def language_codes(tokenizer: Any) -> list[str]:
    """Return the tokens of a tokenizer that are language codes."""
    added = sorted(tokenizer.get_added_vocab(), key=tokenizer.get_added_vocab().__getitem__)
    own = getattr(tokenizer, "lang_token_to_id", {})  # in M2M100, codes are neither special nor added tokens
    return [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added, *own]) if is_code(token)]


def is_code(token: str) -> bool:
    """Return whether a special token is the code of a language: ``de_DE``, ``__de__``, ``deu_Latn``."""
    name = token.strip("_")
    language, _, region = name.partition("_")
    return (
        token != name.replace("_", "")
        and 2 <= len(language) <= 3
        and language.isalpha()
        and (region.isalpha() or token == f"__{name}__")
    )


def _find_code(spelling: str, codes: Sequence[str]) -> str | None:
    """Return which of a model's codes denotes a language, or None.

    The first match counts: a code spelled like ``spelling``, the code of the model's family for the language
    (:mod:`signllm.languages`), any other code of the same language (``de_AT``). A language that this project
    does not know matches a code that begins with ``spelling``.
    """
    by_key = {code.strip("_").casefold(): code for code in reversed(codes)}
    key = spelling.strip().strip("_").replace("-", "_").casefold()
    if key in by_key:
        return by_key[key]
    language = find_language(spelling)
    if language is None:
        return next((code for name, code in by_key.items() if name.partition("_")[0] == key), None)
    for own in (language.nllb, language.mbart, language.m2m100):
        if own is not None and own.casefold() in by_key:
            return by_key[own.casefold()]
    return next((code for code in codes if find_language(code) is language), None)
