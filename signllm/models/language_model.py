"""The frozen causal language model that writes the sentence, and the layout of its input (paper section 3.4).

Input: [begin] prompt, sign words, separator, text, [end]. The paper gives neither prompt nor positions: ours,
and options. The model is never trained (LoRA adapters apart); under ZeRO-3 it is partitioned over the ranks
as it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.errors import UsageError
from signllm.models.frozen_llm import (
    LoraConfig,
    load_model,
    load_tokenizer,
    recompute_activations,
    with_lora,
    zero3_loading,
)
from signllm.models.gather import whole, world_and_rank
from signllm.models.operations import language_model_cost

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Which model, in which precision, and what surrounds the sign words.

    Attributes:
        path: folder of a causal language model with its tokenizer, as ``transformers`` saves them.
        dtype: of the frozen weights (paper: 16 bit).
        prompt: precedes the signs; ``{language}`` becomes the sample's language.
        separator: follows the signs, before the text.
        max_text_tokens: longer references are cut in training.
        gradient_checkpointing: recompute the model's activations in the backward pass.
        attention: implementation that ``transformers`` takes; None lets it choose.
        lora: adapters, or None.
    """

    path: str = ""
    dtype: Literal["fp32", "bf16"] = "bf16"
    prompt: str = "Translate this sign language into {language}:"
    separator: str = "\n"
    max_text_tokens: int = 128
    gradient_checkpointing: bool = False
    attention: str | None = None
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        try:
            self.prompt.format(language="English")
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"the prompt {self.prompt!r} cannot be filled in: {error!r}",
                where="language_model.prompt",
                remedy="the only place to fill is {language}",
            ) from None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How text is decoded; not stated in the paper. Greedy by default.

    Attributes:
        beams: 1 is greedy.
        max_new_tokens: a translation ends here at the latest.
        length_penalty: above 0 favours longer beams.
        no_repeat_ngram: n-grams of this length occur once; 0 allows all.
        language: asked for where a video names none; None until ``finetune`` fills in the commonest of its
            training texts.
    """

    beams: int = 1
    max_new_tokens: int = 64
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    language: str | None = None

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_new_tokens < 1:
            raise UsageError(
                f"generation.beams {self.beams}, max_new_tokens {self.max_new_tokens}",
                remedy="give 1 or more",
            )


class Scored(NamedTuple):
    """References as the model saw them.

    Attributes:
        losses: (B,) sum of the cross-entropies of a text's tokens, end included, float32.
        tokens: (B,) number of those tokens.
        places: of each video, what the model read: prompt, sign words, separator and text.
    """

    losses: Tensor
    tokens: Tensor
    places: list[int]


class LanguageModel(nn.Module):
    """A frozen causal language model that is prompted with vectors.

    Args:
        config: which one.
        deepspeed: the engine's settings; with ZeRO-3 the weights are partitioned while they are loaded.
    """

    def __init__(self, config: LanguageModelConfig, *, deepspeed: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = load_tokenizer(config.path)
        with zero3_loading(deepspeed, dtype=config.dtype):
            self.model = load_model(config.path, dtype=config.dtype, attention=config.attention)
        if config.gradient_checkpointing:
            recompute_activations(self.model)
        if config.lora is not None:
            self.model = with_lora(self.model, config.lora)
        self.cost = language_model_cost(self.model)
        self.train(self.training)

    @property
    def width(self) -> int:
        """E, the width of the token embeddings."""
        return int(self.model.get_input_embeddings().embedding_dim)

    def train(self, mode: bool = True) -> LanguageModel:
        """Switch the mode; a frozen model stays in evaluation, unless that would switch recomputation off."""
        super().train(mode)
        if not self.config.gradient_checkpointing and self.config.lora is None:
            self.model.eval()
        return self

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Return the embeddings (L, E) of token ids, detached."""
        table = self.model.get_input_embeddings()
        device = next(self.model.parameters()).device
        with torch.no_grad():
            return table(torch.tensor(list(tokens), dtype=torch.int64, device=device))

    def sample_embeddings(self, count: int) -> Tensor:
        """Copy ``count`` rows of the token embeddings, evenly spread over the vocabulary, as float32."""
        table = self.model.get_input_embeddings()
        with whole([table.weight]), torch.no_grad():
            rows = torch.linspace(0, len(table.weight) - 1, min(count, len(table.weight))).round().long()
            return table.weight[rows.to(table.weight.device)].float().clone()

    def forward(
        self, words: Tensor, counts: Tensor, texts: Sequence[str], languages: Sequence[str]
    ) -> Scored:
        """Score reference texts given sign words.

        Args:
            words: (sum M, E) projected sign words, packed.
            counts: (B,) words of each video.
            texts: B references.
            languages: B languages, for the prompt.
        """
        prefixes = self._prefixes(words, counts, languages)
        tokens = [self._text_tokens(text) for text in texts]
        rows = [
            torch.cat([prefix, self.embed(ids).to(prefix.dtype)])
            for prefix, ids in zip(prefixes, tokens, strict=True)
        ]
        embedded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.full(embedded.shape[:2], IGNORED, dtype=torch.int64)
        mask = torch.zeros(embedded.shape[:2], dtype=torch.int64)
        for place, (prefix, ids) in enumerate(zip(prefixes, tokens, strict=True)):
            labels[place, len(prefix) : len(prefix) + len(ids)] = torch.tensor(ids)
            mask[place, : len(prefix) + len(ids)] = 1
        labels, mask = labels.to(words.device), mask.to(words.device)
        logits = self.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        losses, counted = _token_losses(logits, labels), (labels != IGNORED).sum(dim=1)
        return Scored(losses, counted, [len(row) for row in rows])

    @torch.no_grad()
    def generate(
        self, words: Tensor, counts: Tensor, languages: Sequence[str], generation: GenerationConfig
    ) -> list[str]:
        """Write a text for every video, padded on the left (under ZeRO-3 all ranks, equally often)."""
        prefixes = self._prefixes(words, counts, languages)
        longest = max(len(prefix) for prefix in prefixes)
        embedded = torch.stack(
            [functional.pad(prefix, (0, 0, longest - len(prefix), 0)) for prefix in prefixes]
        )
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=embedded.device)
        mask = (torch.arange(longest, device=embedded.device) >= longest - lengths[:, None]).long()
        written = self.model.generate(
            inputs_embeds=embedded,
            attention_mask=mask,
            max_new_tokens=generation.max_new_tokens,
            num_beams=generation.beams,
            do_sample=False,
            length_penalty=generation.length_penalty if generation.beams > 1 else None,
            no_repeat_ngram_size=generation.no_repeat_ngram or None,
            pad_token_id=self.tokenizer.eos_token_id
            if self.tokenizer.pad_token_id is None
            else self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            synced_gpus=world_and_rank()[0] > 1 and self._is_partitioned(),
        )
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def _is_partitioned(self) -> bool:
        return any(hasattr(parameter, "ds_id") for parameter in self.model.parameters())

    def _prefixes(self, words: Tensor, counts: Tensor, languages: Sequence[str]) -> list[Tensor]:
        """[begin] prompt, words, separator: one (L, E) for each video, in the model's dtype."""
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        prompts = {
            name: begin + self._tokens(self.config.prompt.format(language=name)) for name in set(languages)
        }
        embedded = {name: self.embed(prompts[name]) for name in sorted(prompts)}
        separator = self.embed(self._tokens(self.config.separator))
        parts = words.to(separator.dtype).split(counts.tolist())
        return [
            torch.cat([embedded[name], part, separator]) for name, part in zip(languages, parts, strict=True)
        ]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _text_tokens(self, text: str) -> list[int]:
        return [*self._tokens(text)[: self.config.max_text_tokens], self.tokenizer.eos_token_id]


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of cross-entropies per row; only the places that predict a label are turned into float32."""
    targets = labels[:, 1:]
    row, place = (targets != IGNORED).nonzero(as_tuple=True)
    losses = functional.cross_entropy(logits[row, place].float(), targets[row, place], reduction="none")
    return torch.zeros(len(labels), device=logits.device).index_add(0, row, losses)
