"""A frozen causal language model as the generator of translations.

It reads and continues the sequence: [begin token] prompt, sign words, separator, text, [end token].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from signllm.models.language_model.generation import Candidate, GenerationConfig
from signllm.models.language_model.language_model import (
    IGNORED,
    LanguageModel,
    ReferenceScores,
    pad_rows,
    sum_token_losses,
)
from signllm.models.operation_counts import language_model_cost


class CausalLanguageModel(LanguageModel):
    """A model of ``AutoModelForCausalLM``, such as LLaMA; see :class:`LanguageModel`."""

    kind = "causal"

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.cost = language_model_cost(self.model)

    def forward(
        self, words: Tensor, counts: Tensor, texts: Sequence[str], languages: Sequence[str]
    ) -> ReferenceScores:
        """Compute the losses of reference texts after the sign words; the batch is padded at the end."""
        tokens = [self._text_tokens(text) for text in texts]
        prefixes = self._embed_prompts(words, counts, languages, rooms=[len(ids) for ids in tokens])
        embedded, mask = pad_rows(
            [
                torch.cat([prefix, self.embed(ids).to(prefix.dtype)])
                for prefix, ids in zip(prefixes, tokens, strict=True)
            ]
        )
        targets = torch.full(mask.shape, IGNORED, dtype=torch.int64)
        for place, (prefix, ids) in enumerate(zip(prefixes, tokens, strict=True)):
            targets[place, len(prefix) - 1 : len(prefix) + len(ids) - 1] = torch.tensor(ids)
        targets = targets.to(words.device)
        logits = self.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        places = mask.sum(dim=1).tolist()
        counted = (targets != IGNORED).sum(dim=1)
        return ReferenceScores(
            sum_token_losses(logits, targets), counted, places, self.cost.operations(places)
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
        """Generate the candidate translations of every video; the batch is padded at the beginning."""
        rooms = [generation.max_new_tokens] * len(languages)
        prefixes = self._embed_prompts(words, counts, languages, rooms=rooms)
        longest = max(len(prefix) for prefix in prefixes)
        embedded = torch.stack(
            [functional.pad(prefix, (0, 0, longest - len(prefix), 0)) for prefix in prefixes]
        )
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=embedded.device)
        mask = (torch.arange(longest, device=embedded.device) >= longest - lengths[:, None]).long()
        return self._run_generation({"inputs_embeds": embedded, "attention_mask": mask}, generation, seeds)
