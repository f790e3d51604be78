"""Text generation (greedy, beam search, sampling, n-best), and the scores of the generated texts.

Sampling adds Gumbel noise to the logits and takes the largest, which is an exact draw from their softmax. The
noise of each row comes from its own random generator. A sampled text therefore depends on the seed and on the
input of its row, but not on the other rows of the batch, on the number of ranks or on the device.

Only the options of :class:`GenerationConfig` determine how text is generated. The settings in a model's own
``generation_config.json`` or ``config.json`` (a repetition penalty, a minimum length, a forced first token)
are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from signllm.errors import UsageError
from signllm.validation import (
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    validated,
)


@validated
class GenerationConfig:
    """How text is generated; not stated in the paper. The default is greedy decoding.

    Attributes:
        beams: number of beams; 1 is greedy decoding.
        max_new_tokens: largest number of tokens of a translation.
        length_penalty: exponent of the length in the score of a beam; values above 0 favour longer beams.
        no_repeat_ngram: length of n-grams that may occur only once in a text; 0 allows all repetitions.
        language: target language of a video without one; None until ``finetune`` fills in the most frequent
            language of its training texts.
        temperature: if given, each token is sampled, from the softmax of the logits divided by this value;
            None does not sample.
        top_p: sample from the most probable tokens whose probabilities sum to this value; 1 means all tokens.
        top_k: sample from this number of the most probable tokens; 0 means all tokens.
        seed: random seed of sampling; the sampled text of a video does not depend on batch, ranks or device.
        n_best: number of texts to return, the best beams or as many samples; duplicates are removed.
    """

    beams: PositiveInt = 1
    max_new_tokens: PositiveInt = 64
    length_penalty: float = 1.0
    no_repeat_ngram: NonNegativeInt = 0
    language: str | None = None
    temperature: PositiveFloat | None = None
    top_p: PositiveFraction = 1.0
    top_k: NonNegativeInt = 0
    seed: int = 0
    n_best: PositiveInt = 1

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` for a contradictory combination."""
        if self.samples and self.beams > 1:
            raise UsageError(
                f"beams is {self.beams}, but a temperature samples tokens without beam search",
                where="beams",
                remedy="give beams or a temperature",
            )
        if not self.samples and (self.top_p < 1 or self.top_k):
            raise UsageError(
                f"top_p is {self.top_p} and top_k {self.top_k}, which have no effect without sampling",
                where="top_k" if self.top_k else "top_p",
                remedy="give a temperature, for instance 1",
            )
        if not self.samples and self.n_best > self.beams:
            raise UsageError(
                f"n_best is {self.n_best}, but there are only {self.beams} beams",
                where="n_best",
                remedy=f"set beams to {self.n_best} or more, or sample with a temperature",
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled."""
        return self.temperature is not None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A generated text.

    Attributes:
        text: the text without its end token.
        score: mean log probability of its tokens, including the end token.
    """

    text: str
    score: float


def sampling_seed(words: Sequence[int], seed: int) -> int:
    """Return the random seed for sampling a video's texts, from its word ids and the seed of the options."""
    named = repr((seed, list(words))).encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:7], "big")


@torch.no_grad()
def run_generation(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Tensor],
    generation: GenerationConfig,
    *,
    seeds: Sequence[int],
    ends: Sequence[Sequence[int]],
    room: int | None = None,
    synced: bool = False,
) -> list[tuple[Candidate, ...]]:
    """Generate texts with a ``transformers`` model.

    Args:
        model: causal or encoder-decoder model.
        tokenizer: tokenizer of the model.
        inputs: arguments of its ``generate``, each (B, ...): embeddings, attention mask, and for an
            encoder-decoder the tokens that the decoder begins with.
        generation: how texts are generated.
        seeds: B random seeds for sampling.
        ends: token sequences, each of which ends a text.
        room: largest number of new tokens that the model has positions for, or None.
        synced: continue until the texts of all ranks are complete; ZeRO-3 requires it, because every rank
            must call the model equally often.

    Returns:
        The candidates of each video, best first: samples by their score, beams in the order of the search,
            which
        depends on ``length_penalty``.
    """
    draws = generation.n_best if generation.samples else 1
    inputs = {name: value.repeat_interleave(draws, dim=0) for name, value in inputs.items()}
    noise = [seed + draw for seed in seeds for draw in range(draws)]
    chosen = _BeamTokenScores(generation.beams) if generation.beams > 1 else _ChosenTokenScores(ends)
    settings = library_settings(generation, tokenizer, ends)
    settings.return_dict_in_generate = generation.beams > 1
    if room is not None:
        settings.max_new_tokens = min(settings.max_new_tokens, room)
    if "decoder_input_ids" in inputs:  # otherwise generate() prepends its own start token
        settings.decoder_start_token_id = int(inputs["decoder_input_ids"][0, 0])
    written = model.generate(
        **inputs,
        generation_config=settings,
        synced_gpus=synced,
        logits_processor=_logits_processors(generation, chosen, noise),
        stopping_criteria=_stopping_criteria(ends),
    )
    sequences = written.sequences if generation.beams > 1 else written
    scores = chosen.means(sequences, getattr(written, "beam_indices", None)).tolist()
    started = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 0
    tokens = [row[: _find_end(row, ends)[0]] for row in sequences[:, started:].tolist()]
    # Otherwise a tokenizer with clean_up_tokenization_spaces would turn "rain ." into "rain." on decoding.
    decoded = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts = [text.strip() for text in decoded]
    candidates = [Candidate(text=text, score=score) for text, score in zip(texts, scores, strict=True)]
    every = range(0, len(candidates), generation.n_best)
    return [_rank_candidates(candidates[at : at + generation.n_best], generation) for at in every]


def library_settings(generation: GenerationConfig, tokenizer: Any, ends: Sequence[Sequence[int]]) -> Any:
    """Return our options as a generation configuration of ``transformers``.

    All other options have the library's defaults. ``generate`` would take missing options from the model's
    own settings; these were cleared when the model was loaded.
    """
    from transformers import GenerationConfig as LibrarySettings

    return LibrarySettings(
        max_new_tokens=generation.max_new_tokens,
        num_beams=generation.beams,
        num_return_sequences=1 if generation.samples else generation.n_best,
        do_sample=False,  # run_generation() samples by adding noise
        use_cache=True,
        length_penalty=generation.length_penalty if generation.beams > 1 else None,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[end[0] for end in ends if len(end) == 1],
    )


def _stopping_criteria(ends: Sequence[Sequence[int]]) -> Any:
    """Return stopping criteria for ends of several tokens; ``generate`` handles single end tokens itself."""
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList([_EndSequenceStop(end) for end in ends if len(end) > 1])


class _EndSequenceStop:
    """Stopping criterion: a row is complete if it ends with a given sequence of tokens."""

    def __init__(self, end: Sequence[int]) -> None:
        self.end = list(end)

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if ids.shape[1] < len(self.end):
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        end = torch.tensor(self.end, device=ids.device)
        return (ids[:, -len(end) :] == end).all(dim=1)


def _find_end(tokens: list[int], ends: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the number of tokens before the first end of a text, and including it.

    Without an end, both are the number of all tokens.
    """
    for place in range(len(tokens)):
        for end in ends:
            if tokens[place : place + len(end)] == list(end):
                return place, place + len(end)
    return len(tokens), len(tokens)


def _rank_candidates(candidates: list[Candidate], generation: GenerationConfig) -> tuple[Candidate, ...]:
    """Return the candidates of one video, best first, without duplicate texts."""
    if generation.samples:
        candidates = sorted(candidates, key=lambda candidate: -candidate.score)
    by_text: dict[str, Candidate] = {}
    for candidate in candidates:
        by_text.setdefault(candidate.text, candidate)
    return tuple(by_text.values())


def _logits_processors(generation: GenerationConfig, chosen: Any, seeds: list[int]) -> list[Any]:
    """Return the logits processors in the order they are applied.

    Greedy decoding and sampling record the model's own log probabilities first; beam search records those it
    searches with, last.
    """
    from transformers.generation import logits_process as library

    recorded_first = [chosen] if generation.beams == 1 else []
    processors: list[Any] = library.LogitsProcessorList(recorded_first)
    if generation.no_repeat_ngram:
        processors.append(library.NoRepeatNGramLogitsProcessor(generation.no_repeat_ngram))
    if generation.temperature is not None:
        processors.append(library.TemperatureLogitsWarper(float(generation.temperature)))
        if generation.top_k:
            processors.append(library.TopKLogitsWarper(generation.top_k))
        if generation.top_p < 1:
            processors.append(library.TopPLogitsWarper(generation.top_p))
        processors.append(_GumbelNoise(seeds))
    if generation.beams > 1:
        processors.append(chosen)  # beam search sees these logits; it never chooses a forbidden token
    return processors


class _GumbelNoise:
    """Adds Gumbel noise to logits (B, V), so that the largest entry of a row is a sample of its softmax."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.stack(
            [torch.rand(scores.shape[1], generator=g, dtype=torch.float64) for g in self.generators]
        )
        noise = -(-uniform.clamp(min=1e-300).log()).clamp(min=1e-300).log()
        return scores + noise.to(scores)


class _ChosenTokenScores:
    """Records the log probabilities of generated tokens.

    Of the logits of a step, it takes that of the token which is seen in the next step.
    """

    def __init__(self, ends: Sequence[Sequence[int]]) -> None:
        self.ends, self.steps, self._begin = ends, list[Tensor](), 0
        self._last: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is None:
            self._begin = ids.shape[
                1
            ]  # length of the decoder's start, to which a model family may prepend a token
        else:
            self._note(ids[:, -1])
        self._last = scores
        return scores

    def _note(self, tokens: Tensor) -> None:
        assert self._last is not None
        taken = self._last.gather(1, tokens[:, None])[:, 0]
        self.steps.append(taken - self._last.logsumexp(dim=1))

    def means(self, sequences: Tensor, beams: Tensor | None) -> Tensor:
        """Return the mean log probability (B,) of each of ``sequences`` (B, L) up to its end."""
        tokens = sequences[:, self._begin :]
        if len(self.steps) < tokens.shape[1]:
            self._note(tokens[:, len(self.steps)])
        taken_BL = torch.stack(self.steps[: tokens.shape[1]], dim=1)
        lengths = torch.tensor([_find_end(row, self.ends)[1] for row in tokens.tolist()])
        counted_BL = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(taken_BL.device)
        return (taken_BL * counted_BL).sum(dim=1) / counted_BL.sum(dim=1)


class _BeamTokenScores:
    """Records the log probabilities of tokens that beam search can choose.

    These are the 2 x beams best of each beam. ``transformers`` itself would keep steps x beams x vocabulary
    values.
    """

    def __init__(self, beams: int) -> None:
        self.kept, self.steps, self._begin = 2 * beams, list[tuple[Tensor, Tensor]](), 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self._begin = self._begin if self.steps else ids.shape[1]
        best = scores.topk(min(self.kept, scores.shape[1]), dim=1)
        self.steps.append((best.values, best.indices))
        return scores

    def means(self, sequences: Tensor, beams: Tensor | None) -> Tensor:
        """Return the mean log probability (B,) of each of ``sequences``.

        ``beams`` (B, L) is the row from which each token was chosen, -1 after the end.
        """
        assert beams is not None
        tokens = sequences[:, self._begin :]
        total = torch.zeros(len(tokens), device=tokens.device)
        for step, (values, indices) in enumerate(self.steps[: beams.shape[1]]):
            row = beams[:, step].long()
            is_chosen = (indices[row] == tokens[:, step, None]) & (row >= 0)[:, None]
            total += torch.where(is_chosen, values[row], 0.0).sum(dim=1)
        return total / (beams >= 0).sum(dim=1)
