"""The frozen language model that writes the sentence (paper section 3.4): what all kinds have in common.

It is prompted with vectors. :class:`~signllm.models.causal_model.CausalLanguageModel` (LLaMA, as in the
paper) reads them before the text, :class:`~signllm.models.encoder_decoder_model.EncoderDecoderLanguageModel`
(T5, mBART) in its encoder. The paper gives neither prompt nor positions: ours, and options. The model is
never trained (adapters apart); under ZeRO-3 it is partitioned over the ranks as it is loaded.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.errors import UsageError
from signllm.models.adapters import LoraConfig, PromptTuningConfig, add_lora, build_virtual_tokens
from signllm.models.chat_template import Thinking
from signllm.models.collectives import gathered_parameters, world_and_rank
from signllm.models.generation import Candidate, GenerationConfig, write
from signllm.models.language_model_loading import (
    load_model,
    load_tokenizer,
    model_type,
    position_limit,
    read_configuration,
    recompute_activations,
)
from signllm.models.language_model_quantization import Quantize
from signllm.models.model_files import model_folder
from signllm.models.prompt import Prompt, find_family

IGNORED = -100
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Which model, in which precision, and what surrounds the sign words.

    Attributes:
        path: folder of a language model with its tokenizer, as ``transformers`` saves them, or its name on
            the hub if it was fetched before; causal or encoder-decoder, its own configuration says which.
        dtype: of the frozen weights (paper: 16 bit).
        prompt: precedes the signs; ``{language}`` becomes the sample's language. None: the family's
            (:mod:`signllm.models.prompt`).
        prompt_language: ``target``: a causal model's prompt is in the language that it is to write, German
            for German; T5 and its like learnt tasks by English words, mBART by codes: theirs stay.
        separator: follows the signs, before the text. None: the family's.
        chat: put prompt and signs into the tokenizer's chat template. None: where it has one. Like the four
            that follow it is recorded when training begins, so that a run asks in the same way on any day.
        chat_template: text of the template, a file, or the name of one of the tokenizer's several. None: the
            tokenizer's own.
        date: what the template reads as today, as in 2026-11-30. None: today; recorded only if the template
            prints it.
        thinking: ``off`` asks the template not to think and closes a thought that it opens, so that the text
            follows; ``template`` leaves the template its own default. None: ``off``.
        end_of_turn: text of the tokens that end every text, in training and in writing; empty: the
            tokenizer's end token. None: what ends an answer in the chat template, else the end token.
        max_text_tokens: longer references are cut in training.
        too_long: where prompt, sign words and text exceed what the model reads: ``cut`` the last sign words,
            with a warning, or an ``error``.
        gradient_checkpointing: recompute the model's activations in the backward pass.
        attention: how attention is computed; None: torch's SDPA, or ``eager`` where a family has none.
        quantize: the frozen weights to 4 or 8 bits (:mod:`signllm.models.language_model_quantization`); not
            under ZeRO-3.
        lora: low-rank adapters, or None.
        prompt_tuning: learnt vectors before the prompt, or None; not beside ``lora``.
    """

    path: str = ""
    dtype: Literal["fp32", "bf16"] = "bf16"
    prompt: str | None = None
    prompt_language: Literal["English", "target"] = "English"
    separator: str | None = None
    chat: bool | None = None
    chat_template: str | None = None
    date: str | None = None
    thinking: Thinking | None = None
    end_of_turn: str | None = None
    max_text_tokens: int = 128
    too_long: Literal["cut", "error"] = "cut"
    gradient_checkpointing: bool = False
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    quantize: Quantize = "none"
    lora: LoraConfig | None = None
    prompt_tuning: PromptTuningConfig | None = None

    def __post_init__(self) -> None:
        if self.lora is not None and self.prompt_tuning is not None:
            raise UsageError(
                "lora and prompt_tuning are both given, and peft has no format for the two together",
                where="language_model.prompt_tuning",
                remedy="give one, and none for the other",
            )
        try:
            (self.prompt or "").format(language="English")
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"the prompt {self.prompt!r} cannot be filled in: {error!r}",
                where="language_model.prompt",
                remedy="the only place to fill is {language}",
            ) from None
        if self.prompt is not None and self.prompt_language == "target":
            raise UsageError(
                "a prompt of your own is not translated: prompt_language is target",
                where="language_model.prompt_language",
                remedy="leave out one of the two",
            )
        try:
            date.fromisoformat(self.date or "2000-01-01")
        except ValueError:
            raise UsageError(
                f"date is {self.date!r}", where="language_model.date", remedy="give a day as in 2026-11-30"
            ) from None

    @property
    def is_recorded(self) -> bool:
        """Whether a run recorded what decides its prompts."""
        return self.chat is not None and self.end_of_turn is not None

    def with_older_defaults(self) -> LanguageModelConfig:
        """Return settings that a run recorded; where it is older than such records, what it did then.

        Its texts ended with the tokenizer's end token, and its template was not asked not to think.
        """
        if self.is_recorded:
            return self
        end = "" if self.end_of_turn is None else self.end_of_turn
        return replace(self, end_of_turn=end, thinking=self.thinking or "template")


class ReferenceScores(NamedTuple):
    """References as the model saw them.

    Attributes:
        losses: (B,) sum of the cross-entropies of a text's tokens, end included, float32.
        tokens: (B,) number of those tokens.
        places: of each video, what the model read: prompt, sign words, separator and text.
        operations: floating-point operations of all that, backward included.
    """

    losses: Tensor
    tokens: Tensor
    places: list[int]
    operations: float


class LanguageModel(nn.Module, ABC):
    """A frozen language model that is prompted with vectors; :func:`build_language_model` builds one.

    Args:
        config: which one.
        model: of ``transformers``, with adapters if there are any.
        tokenizer: of the model.
        prompt: what surrounds the signs.
        virtual_tokens: learnt vectors before the prompt
            (:func:`signllm.models.adapters.build_virtual_tokens`).
    """

    kind: Literal["causal", "encoder-decoder"]

    def __init__(
        self,
        config: LanguageModelConfig,
        model: Any,
        tokenizer: Any,
        prompt: Prompt,
        *,
        virtual_tokens: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config, self.model, self.tokenizer, self.prompt = config, model, tokenizer, prompt
        self.virtual_tokens = virtual_tokens
        self.limit = position_limit(model.config)
        self._has_warned = False

    @abstractmethod
    def forward(
        self, words: Tensor, counts: Tensor, texts: Sequence[str], languages: Sequence[str]
    ) -> ReferenceScores:
        """Score reference texts given sign words.

        Args:
            words: (sum M, E) projected sign words, packed.
            counts: (B,) words of each video.
            texts: B references.
            languages: B languages, for the prompt.

        Raises:
            UsageError: a video has too many words for the model, and ``too_long`` is an error.
        """

    @abstractmethod
    def write(
        self,
        words: Tensor,
        counts: Tensor,
        languages: Sequence[str],
        generation: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> list[tuple[Candidate, ...]]:
        """Write texts for every video, best first (under ZeRO-3 all ranks, equally often).

        ``seeds``: of each video's draws; by default they differ by its place.
        """

    def generate(
        self, words: Tensor, counts: Tensor, languages: Sequence[str], generation: GenerationConfig
    ) -> list[str]:
        """Write the best text for every video (under ZeRO-3 all ranks, equally often)."""
        return [best.text for best, *_ in self.write(words, counts, languages, generation)]

    @property
    def width(self) -> int:
        """E, the width of the token embeddings."""
        return int(self.model.get_input_embeddings().embedding_dim)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Return the embeddings (L, E) of token ids, detached, in the scale that the model gives them."""
        table = self.model.get_input_embeddings()
        with torch.no_grad():  # a hook of recomputed activations asks for the gradient all the same
            return table(torch.tensor(list(tokens), dtype=torch.int64, device=table.weight.device)).detach()

    def sample_embeddings(self, count: int) -> Tensor:
        """Copy the embeddings of ``count`` tokens, evenly spread over the vocabulary, as float32."""
        table = self.model.get_input_embeddings()
        with gathered_parameters([table.weight]):
            rows = torch.linspace(0, len(table.weight) - 1, min(count, len(table.weight))).round().long()
            return self.embed(rows.tolist()).float().clone()

    def _embed_prompts(
        self, words: Tensor, counts: Tensor, languages: Sequence[str], *, rooms: Sequence[int]
    ) -> list[Tensor]:
        """Learnt vectors, prompt, words, what follows: one (L, E) for each video, in the model's dtype.

        ``rooms``: places that each text takes of those that the model has.
        """
        around = {name: self.prompt.context_tokens(name) for name in sorted(set(languages))}
        embedded = {name: (self.embed(before), self.embed(after)) for name, (before, after) in around.items()}
        dtype = self.model.get_input_embeddings().weight.dtype
        learnt = words.new_empty(0, words.shape[1], dtype=dtype)
        if self.virtual_tokens is not None:
            learnt = self.virtual_tokens.get_parameter("embedding.weight").to(dtype)
        rows = []
        for name, part, room in zip(languages, words.to(dtype).split(counts.tolist()), rooms, strict=True):
            before, after = embedded[name]
            kept = self._kept(len(part), taken=len(learnt) + len(before) + len(after) + room)
            rows.append(torch.cat([learnt, before, part[:kept], after]))
        return rows

    def _kept(self, words: int, *, taken: int) -> int:
        """Return how many of a video's words the model reads; say so if not all."""
        if self.limit is None or words + taken <= self.limit:
            return words
        kept = max(0, self.limit - taken)
        told = f"{words} sign words, prompt and text do not fit into the model's {self.limit} places"
        if self.config.too_long == "error" or not kept:
            raise UsageError(
                told,
                where=self.config.path,
                remedy="compose larger words, shorten language_model.max_text_tokens or the prompt"
                + ("" if not kept else ", or set language_model.too_long to cut"),
            )
        if not self._has_warned:  # once: a dataset of long videos would fill the log
            log.warning("%s: the last %d words are cut, and so of every such video", told, words - kept)
            self._has_warned = True
        return kept

    def _written(
        self,
        inputs: Mapping[str, Tensor],
        generation: GenerationConfig,
        seeds: Sequence[int] | None,
        *,
        room: int | None = None,
    ) -> list[tuple[Candidate, ...]]:
        """Write texts behind ``inputs`` of the model; ``room``: no more tokens than these."""
        first = next(iter(inputs.values()))
        if seeds is None:
            seeds = [generation.seed + place * generation.n_best for place in range(len(first))]
        synced = world_and_rank()[0] > 1 and self._is_partitioned()
        return write(
            self.model,
            self.tokenizer,
            inputs,
            generation,
            seeds=seeds,
            ends=self.prompt.ends,
            room=room,
            synced=synced,
        )

    def _is_partitioned(self) -> bool:
        return any(hasattr(parameter, "ds_id") for parameter in self.model.parameters())

    def _text_tokens(self, text: str, *, room: int | None = None) -> list[int]:
        """Return a reference's tokens and the end; ``room``: no more than these."""
        end, longest = self.prompt.end, self.config.max_text_tokens
        longest = longest if room is None else min(longest, room - len(end))
        return [*self.prompt.tokens(text)[:longest], *end]


def build_language_model(
    config: LanguageModelConfig, *, deepspeed: Mapping[str, Any] | None = None
) -> LanguageModel:
    """Load the language model of a folder; its configuration says of which kind it is.

    Args:
        config: which one.
        deepspeed: the engine's settings; with ZeRO-3 the weights are partitioned while they are loaded.

    Raises:
        UsageError: there is none, or its tokenizer is missing.
    """
    kind = language_model_class(is_encoder_decoder=read_configuration(config.path).is_encoder_decoder)
    tokenizer = load_tokenizer(config.path)
    model: Any = load_model(
        config.path,
        kind.kind,
        dtype=config.dtype,
        attention=config.attention,
        quantize=config.quantize,
        deepspeed=deepspeed,
    )
    if config.gradient_checkpointing:
        recompute_activations(model)
    prompt = build_prompt(config, tokenizer, model_type(model))
    learnt = None
    if config.lora is not None:
        model = add_lora(model, config.lora)
    if config.prompt_tuning is not None:
        folder = str(model_folder(config.path))
        learnt = build_virtual_tokens(model, config.prompt_tuning, tokenizer=folder)
    return kind(config, model, tokenizer, prompt, virtual_tokens=learnt)


def build_prompt(config: LanguageModelConfig, tokenizer: Any, model_type: str) -> Prompt:
    """Return the prompt of a model of the type that ``transformers`` calls ``model_type``.

    A run's own chat template is used although the tokenizer's has changed since; then this is logged.
    """
    prompt = Prompt(
        tokenizer,
        find_family(model_type),
        text=config.prompt,
        separator=config.separator,
        chat=config.chat,
        in_target=config.prompt_language == "target",
        chat_template=config.chat_template,
        day=config.date,
        thinking=config.thinking,
        end_of_turn=config.end_of_turn,
    )
    own = getattr(tokenizer, "chat_template", None)
    if prompt.template is not None and own and prompt.template.text not in (own, *_values(own)):
        log.warning(
            "prompts follow the chat template of the settings, which is not that of %s: the run was begun "
            "with another, or it was given",
            config.path,
        )
    return prompt


def _values(templates: Any) -> list[str]:
    return list(templates.values()) if isinstance(templates, dict) else []


def language_model_class(*, is_encoder_decoder: bool) -> type[LanguageModel]:
    """Return the class of models that read the signs in an encoder, or before the text."""
    from signllm.models.causal_model import CausalLanguageModel
    from signllm.models.encoder_decoder_model import EncoderDecoderLanguageModel

    return EncoderDecoderLanguageModel if is_encoder_decoder else CausalLanguageModel


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (B, L, E) padded at the end, and its mask (B, L) of 0 and 1."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    embedded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    places = torch.arange(embedded.shape[1], device=embedded.device)
    return embedded, (places < lengths[:, None]).long()


def sum_token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of cross-entropies per row; only the places that predict a target are turned into float32.

    Args:
        logits: (B, L, V); those of a place predict that place's target.
        targets: (B, L) token ids, ``IGNORED`` where there is none.
    """
    row, place = (targets != IGNORED).nonzero(as_tuple=True)
    losses = functional.cross_entropy(logits[row, place].float(), targets[row, place], reduction="none")
    return torch.zeros(len(targets), device=logits.device).index_add(0, row, losses)
