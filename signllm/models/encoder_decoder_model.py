"""A frozen encoder-decoder: prompt, sign words, separator, [end] go in; the decoder writes the text.

The decoder begins as its family does: T5 with its start token, mBART and its like with the code of the
language that is to be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from signllm.models.generation import Candidate, GenerationConfig
from signllm.models.language_model import (
    IGNORED,
    LanguageModel,
    Scored,
    padded,
    token_losses,
)
from signllm.models.languages import decoder_start
from signllm.models.operations import encoder_decoder_cost


class EncoderDecoderLanguageModel(LanguageModel):
    """T5, mBART and their like, through ``AutoModelForSeq2SeqLM``; see :class:`LanguageModel`."""

    kind = "encoder-decoder"

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.cost = encoder_decoder_cost(self.model)

    def forward(
        self, words: Tensor, counts: Tensor, texts: Sequence[str], languages: Sequence[str]
    ) -> Scored:
        """Score reference texts that the decoder writes; both sides are padded at the end."""
        embedded, mask = padded(self._sources(words, counts, languages))
        starts = [self._start(name) for name in languages]
        tokens = [
            self._text_tokens(text, room=self._room(start)) for text, start in zip(texts, starts, strict=True)
        ]
        longest = max(len(start) + len(ids) - 1 for start, ids in zip(starts, tokens, strict=True))
        given = torch.full((len(texts), longest), self.tokenizer.eos_token_id, dtype=torch.int64)
        targets, given_mask = torch.full_like(given, IGNORED), torch.zeros_like(given)
        for place, (start, ids) in enumerate(zip(starts, tokens, strict=True)):
            sequence = torch.tensor([*start, *ids])
            given[place, : len(sequence) - 1] = sequence[:-1]
            given_mask[place, : len(sequence) - 1] = 1
            targets[place, len(start) - 1 : len(sequence) - 1] = torch.tensor(ids)
        targets = targets.to(words.device)
        logits = self.model(
            inputs_embeds=embedded,
            attention_mask=mask,
            decoder_input_ids=given.to(words.device),
            decoder_attention_mask=given_mask.to(words.device),
            use_cache=False,
        ).logits
        read, written = mask.sum(dim=1).tolist(), given_mask.sum(dim=1).tolist()
        return Scored(
            token_losses(logits, targets),
            (targets != IGNORED).sum(dim=1),
            [source + target for source, target in zip(read, written, strict=True)],
            self.cost.operations(read, written),
        )

    @torch.no_grad()
    def write(
        self,
        words: Tensor,
        counts: Tensor,
        languages: Sequence[str],
        generation: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> list[tuple[Candidate, ...]]:
        """Write texts for every video (under ZeRO-3 all ranks, equally often)."""
        embedded, mask = padded(self._sources(words, counts, languages))
        starts = [self._start(name) for name in languages]
        inputs = {
            "inputs_embeds": embedded,
            "attention_mask": mask,
            "decoder_input_ids": torch.tensor(starts, device=words.device),
        }
        return self._written(inputs, generation, seeds, room=self._room(starts[0]))

    def _sources(self, words: Tensor, counts: Tensor, languages: Sequence[str]) -> list[Tensor]:
        end = self.embed([self.tokenizer.eos_token_id])
        rows = self._prompted(words, counts, languages, rooms=[len(end)] * len(languages))
        return [torch.cat([row, end]) for row in rows]

    def _room(self, start: list[int]) -> int | None:
        """Return how many tokens the decoder can write behind its start."""
        return None if self.limit is None else self.limit - len(start) + 1

    def _start(self, language: str) -> list[int]:
        return decoder_start(self.tokenizer, self.model.config, language)
