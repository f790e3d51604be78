"""The frozen language model that generates the sentence (paper section 3.4): the base class of both kinds.

Its input is a sequence of embedding vectors: a prompt, the projected sign words and a separator.
:class:`~signllm.models.language_model.causal_model.CausalLanguageModel` (LLaMA, as in the paper) reads it
before the text, :class:`~signllm.models.language_model.encoder_decoder_model.EncoderDecoderLanguageModel`
(T5, mBART) in its encoder. The paper states neither the prompt nor the order; these are our choice, and
options. The model itself is never trained, only adapters in it. With ZeRO-3 it is partitioned over the ranks
as it is loaded.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.distributed.collectives import gathered_parameters, world_and_rank
from signllm.errors import UsageError
from signllm.models.language_model.adapters import LoraConfig, PromptTuningConfig
from signllm.models.language_model.chat_template import Thinking
from signllm.models.language_model.generation import Candidate, GenerationConfig, run_generation
from signllm.models.language_model.loading import (
    position_limit,
)
from signllm.models.language_model.prompt import Prompt
from signllm.models.language_model.weight_quantization import Quantize
from signllm.validation import PositiveInt, validated

IGNORED = -100
log = logging.getLogger(__name__)


@validated
class LanguageModelConfig:
    """Configuration of the language model and of its prompt.

    Attributes:
        path: folder of a language model and its tokenizer as ``transformers`` saves them, or the name of one
            on the hub that has been downloaded before. The model's own configuration determines whether it is
            causal or an encoder-decoder.
        dtype: precision of the frozen weights (paper: 16 bits).
        prompt: text before the sign words; ``{language}`` is replaced by the sample's language. None means
            the default of the model family (:mod:`signllm.models.language_model.prompt`).
        prompt_language: ``target`` gives a causal model a prompt in the language of the translation, for
            instance in German for German. It has no effect on T5 and similar models, which have learned tasks
            by English words, nor on mBART, which uses language codes.
        separator: text between the sign words and the translation. None means the default of the family.
        chat: whether prompt and sign words are put into the tokenizer's chat template. None means yes if
            there is one. This option and the four that follow are recorded when training begins, so that
            later uses of the run have the same prompt.
        chat_template: text of the chat template, a file, or the name of one of the tokenizer's templates.
            None means the tokenizer's only or default template.
        date: date that the template reads as today, as in 2026-11-30. None means today; it is recorded only
            if the template prints it.
        thinking: ``off`` asks the template for no reasoning and closes a reasoning section that the template
            opens, so that the translation follows; ``template`` keeps the template's default. None means
            ``off``.
        end_of_turn: text of the tokens that end every translation, in training and in generation. An empty
            string means the tokenizer's end token; None means the end of an answer in the chat template, or
            the end token without a template.
        max_text_tokens: largest number of tokens of a reference in training; longer references are cut.
        too_long: what to do if prompt, sign words and text exceed the positions of the model: ``cut`` the
            last sign words with a warning, or raise an ``error``.
        gradient_checkpointing: recompute the model's activations in the backward pass.
        attention: implementation of attention. None means torch's SDPA, or ``eager`` for families without it.
        quantize: precision to which the frozen weights are quantized, 4 or 8 bits
            (:mod:`signllm.models.language_model.weight_quantization`); not under ZeRO-3.
        lora: configuration of low-rank adapters, or None.
        prompt_tuning: configuration of learned vectors before the prompt, or None; excludes ``lora``.
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
    max_text_tokens: PositiveInt = 128
    too_long: Literal["cut", "error"] = "cut"
    gradient_checkpointing: bool = False
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    quantize: Quantize = "none"
    lora: LoraConfig | None = None
    prompt_tuning: PromptTuningConfig | None = None

    def __post_init__(self) -> None:
        if self.lora is not None and self.prompt_tuning is not None:
            raise UsageError(
                "lora and prompt_tuning are both configured, but peft cannot save the two together",
                where="prompt_tuning",
                remedy="configure one of them, and set the other to None",
            )
        try:
            (self.prompt or "").format(language="English")
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"the placeholders of the prompt {self.prompt!r} cannot be replaced: {error!r}",
                where="prompt",
                remedy="the only placeholder is {language}",
            ) from None
        if self.prompt is not None and self.prompt_language == "target":
            raise UsageError(
                "prompt_language is target, but a prompt of your own has no translations",
                where="prompt_language",
                remedy="leave out one of the two",
            )
        try:
            date.fromisoformat(self.date or "2000-01-01")
        except ValueError:
            raise UsageError(
                f"date is {self.date!r}, which is not a date",
                where="date",
                remedy="give a date as in 2026-11-30",
            ) from None

    @property
    def is_recorded(self) -> bool:
        """Whether these settings are those of a run that has recorded its chat options."""
        return self.chat is not None and self.end_of_turn is not None

    def with_older_defaults(self) -> LanguageModelConfig:
        """Return the settings of a run with those of older versions where the run has recorded none.

        Runs of older versions end texts with the tokenizer's end token and keep the chat template's default
        reasoning mode.
        """
        if self.is_recorded:
            return self
        end = "" if self.end_of_turn is None else self.end_of_turn
        return replace(self, end_of_turn=end, thinking=self.thinking or "template")


class ReferenceScores(NamedTuple):
    """The losses of reference texts.

    Attributes:
        losses: (B,) float32, sum of the cross-entropies over the tokens of each text, including its end.
        tokens: (B,) number of these tokens.
        places: number of positions that the model read for each video: prompt, sign words, separator and
            text.
        operations: floating-point operations of the forward and the backward pass.
    """

    losses: Tensor
    tokens: Tensor
    places: list[int]
    operations: float


class LanguageModel(nn.Module, ABC):
    """A frozen language model with projected sign words in its prompt.

    :func:`~signllm.models.language_model.builder.build_language_model` builds one.

    Args:
        config: configuration of the language model.
        model: ``transformers`` model, with LoRA adapters if configured.
        tokenizer: tokenizer of the model.
        prompt: tokens before and after the sign words.
        virtual_tokens: learned vectors before the prompt
            (:func:`signllm.models.language_model.adapters.build_virtual_tokens`).
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
        """Compute the losses of reference texts given sign words.

        Args:
            words: (sum M, E) packed projected sign words.
            counts: (B,) number of sign words of each video.
            texts: B reference texts.
            languages: B target languages, for the prompt.

        Raises:
            UsageError: a video has too many sign words for the model, and ``too_long`` is "error".
        """

    @abstractmethod
    def generate_candidates(
        self,
        words: Tensor,
        counts: Tensor,
        languages: Sequence[str],
        generation: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> list[tuple[Candidate, ...]]:
        """Generate the candidate translations of every video, best first.

        With ZeRO-3 every rank must call this, and equally often.

        Args:
            words: (sum M, E) packed projected sign words.
            counts: (B,) number of sign words of each video.
            languages: B target languages.
            generation: how texts are generated.
            seeds: B random seeds for sampling; by default they depend on the index of the video in the batch.
        """

    def generate(
        self, words: Tensor, counts: Tensor, languages: Sequence[str], generation: GenerationConfig
    ) -> list[str]:
        """Generate the best text of every video (see :meth:`generate_candidates`)."""
        return [best.text for best, *_ in self.generate_candidates(words, counts, languages, generation)]

    @property
    def width(self) -> int:
        """Width E of the token embeddings."""
        return int(self.model.get_input_embeddings().embedding_dim)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Return the embeddings (L, E) of token ids, without gradient, as the model itself scales them."""
        table = self.model.get_input_embeddings()
        with torch.no_grad():  # gradient checkpointing has a hook that requests gradients here
            return table(torch.tensor(list(tokens), dtype=torch.int64, device=table.weight.device)).detach()

    def sample_embeddings(self, count: int) -> Tensor:
        """Return a float32 copy of the embeddings of ``count`` tokens, evenly spaced over the vocabulary."""
        table = self.model.get_input_embeddings()
        with gathered_parameters([table.weight]):
            rows = torch.linspace(0, len(table.weight) - 1, min(count, len(table.weight))).round().long()
            return self.embed(rows.tolist()).float().clone()

    def _embed_prompts(
        self, words: Tensor, counts: Tensor, languages: Sequence[str], *, rooms: Sequence[int]
    ) -> list[Tensor]:
        """Return the input of each video, (L, E): learned vectors, prompt, sign words and separator.

        Args:
            words: (sum M, E) packed projected sign words.
            counts: (B,) number of sign words of each video.
            languages: B target languages.
            rooms: number of the model's positions that are reserved for the text of each video.
        """
        tokens = {name: self.prompt.context_tokens(name) for name in sorted(set(languages))}
        embedded = {name: (self.embed(before), self.embed(after)) for name, (before, after) in tokens.items()}
        dtype = self.model.get_input_embeddings().weight.dtype
        learnt = words.new_empty(0, words.shape[1], dtype=dtype)
        if self.virtual_tokens is not None:
            learnt = self.virtual_tokens.get_parameter("embedding.weight").to(dtype)
        rows = []
        for name, part, room in zip(languages, words.to(dtype).split(counts.tolist()), rooms, strict=True):
            before, after = embedded[name]
            fitting = self._count_fitting_words(
                len(part), taken=len(learnt) + len(before) + len(after) + room
            )
            rows.append(torch.cat([learnt, before, part[:fitting], after]))
        return rows

    def _count_fitting_words(self, words: int, *, taken: int) -> int:
        """Return how many of a video's sign words fit into the model; log a warning if some do not.

        Args:
            words: number of sign words of the video.
            taken: number of positions that prompt and text take.
        """
        if self.limit is None or words + taken <= self.limit:
            return words
        fitting = max(0, self.limit - taken)
        problem = f"{words} sign words, prompt and text do not fit into the model's {self.limit} positions"
        if self.config.too_long == "error" or not fitting:
            raise UsageError(
                problem,
                where=self.config.path,
                remedy="compose larger words, shorten language_model.max_text_tokens or the prompt"
                + ("" if not fitting else ", or set language_model.too_long to cut"),
            )
        if not self._has_warned:  # only once: otherwise a dataset of long videos would fill the log
            log.warning(
                "%s: the last %d sign words are cut; this warning is not repeated for other videos",
                problem,
                words - fitting,
            )
            self._has_warned = True
        return fitting

    def _run_generation(
        self,
        inputs: Mapping[str, Tensor],
        generation: GenerationConfig,
        seeds: Sequence[int] | None,
        *,
        room: int | None = None,
    ) -> list[tuple[Candidate, ...]]:
        """Generate texts after ``inputs``, with at most ``room`` tokens; see :func:`run_generation`."""
        first = next(iter(inputs.values()))
        if seeds is None:
            seeds = [generation.seed + place * generation.n_best for place in range(len(first))]
        synced = world_and_rank()[0] > 1 and self._is_partitioned()
        return run_generation(
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
        """Return the tokens of a reference and its end, at most ``room`` of them."""
        end, longest = self.prompt.end, self.config.max_text_tokens
        longest = longest if room is None else min(longest, room - len(end))
        return [*self.prompt.tokens(text)[:longest], *end]


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows (L, E) padded at the end to one length, (B, L, E), and their mask (B, L) of 0 and 1."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    embedded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    places = torch.arange(embedded.shape[1], device=embedded.device)
    return embedded, (places < lengths[:, None]).long()


def sum_token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of each row, (B,) float32.

    Only the logits of positions with a target are converted to float32, which saves memory.

    Args:
        logits: (B, L, V); the logits of a position predict the target at the same position.
        targets: (B, L) token ids, ``IGNORED`` where there is no target.
    """
    row, place = (targets != IGNORED).nonzero(as_tuple=True)
    losses = functional.cross_entropy(logits[row, place].float(), targets[row, place], reduction="none")
    return torch.zeros(len(targets), device=logits.device).index_add(0, row, losses)
