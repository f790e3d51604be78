"""How text is decoded (greedy, beams, sampling, n-best), and what a text's score is.

Sampling adds Gumbel noise to the logits and takes the largest, which draws from their softmax exactly. The
noise of a row comes from a generator of its own, so a draw depends on the seed and on what is read, not on
the other rows of a batch, on ranks or on the device.

Nothing but these options decides how text is decoded: what a model's own ``generation_config.json`` or
``config.json`` asks for (a repetition penalty, a least length, a forced first token) is not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from signllm.errors import UsageError


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
        temperature: draws each token instead of taking the likeliest, from logits divided by this; None
            does not draw.
        top_p: draws among the likeliest tokens that have this probability together; 1 among all.
        top_k: draws among so many of the likeliest tokens; 0 among all.
        seed: of the draws; a video is drawn alike with any batch, ranks and device.
        n_best: texts to return: the best beams, or so many draws; equal ones once.
    """

    beams: int = 1
    max_new_tokens: int = 64
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    language: str | None = None
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    n_best: int = 1

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` for a value, or a combination, that cannot work."""
        if self.beams < 1 or self.max_new_tokens < 1 or self.n_best < 1:
            raise UsageError(
                f"beams {self.beams}, max_new_tokens {self.max_new_tokens}, n_best {self.n_best}",
                where="generation",
                remedy="give 1 or more",
            )
        for told, remedy in self._contradictions():
            raise UsageError(told, where="generation", remedy=remedy)

    @property
    def samples(self) -> bool:
        """Say whether tokens are drawn."""
        return self.temperature is not None

    def _contradictions(self) -> list[tuple[str, str]]:
        """Return what is wrong and its remedy; nothing if all is well."""
        wrong = []
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            wrong.append(
                (f"temperature is {self.temperature}", "give more than 0, or nothing for no drawing")
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            wrong.append((f"top_p is {self.top_p}, top_k {self.top_k}", "top_p in (0, 1], top_k 0 or more"))
        if self.samples and self.beams > 1:
            wrong.append((f"beams is {self.beams} and tokens are drawn", "give beams or a temperature"))
        if not self.samples and (self.top_p < 1 or self.top_k):
            wrong.append(("top_p and top_k say how tokens are drawn", "give a temperature, 1 for instance"))
        if not self.samples and self.n_best > self.beams:
            wrong.append(
                (
                    f"n_best is {self.n_best}, and {self.beams} are searched for",
                    f"set beams to {self.n_best} or more, or draw with a temperature",
                )
            )
        return wrong


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A text that the language model wrote.

    Attributes:
        text: without its end.
        score: mean log probability of its tokens, the end included.
    """

    text: str
    score: float


def sampling_seed(words: Sequence[int], seed: int) -> int:
    """Return the seed of a video's draws: of its word ids, and of what the user gave."""
    named = repr((seed, list(words))).encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:7], "big")


@torch.no_grad()
def write(
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
    """Write texts with a model of ``transformers``.

    Args:
        model: causal, or encoder-decoder.
        tokenizer: of the model.
        inputs: of its ``generate``, each (B, ...): embeddings, mask, the tokens that a decoder begins with.
        generation: how.
        seeds: of the draws, B of them.
        ends: sequences of tokens, each of which ends a text.
        room: no more tokens than these.
        synced: go on until all ranks have ended (ZeRO-3: all ranks, equally often).

    Returns:
        of each video its candidates, best first: draws by their score, beams as the search ranks them
        (``length_penalty``).
    """
    draws = generation.n_best if generation.samples else 1
    inputs = {name: value.repeat_interleave(draws, dim=0) for name, value in inputs.items()}
    noise = [seed + draw for seed in seeds for draw in range(draws)]
    chosen = _ChosenInBeams(generation.beams) if generation.beams > 1 else _Chosen(ends)
    settings = library_settings(generation, tokenizer, ends)
    settings.return_dict_in_generate = generation.beams > 1
    if room is not None:
        settings.max_new_tokens = min(settings.max_new_tokens, room)
    if "decoder_input_ids" in inputs:  # generate() puts its own start before them unless they begin with it
        settings.decoder_start_token_id = int(inputs["decoder_input_ids"][0, 0])
    written = model.generate(
        **inputs,
        generation_config=settings,
        synced_gpus=synced,
        logits_processor=_processors(generation, chosen, noise),
        stopping_criteria=_stopping(ends),
    )
    sequences = written.sequences if generation.beams > 1 else written
    scores = chosen.means(sequences, getattr(written, "beam_indices", None)).tolist()
    started = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 0
    tokens = [row[: _find_end(row, ends)[0]] for row in sequences[:, started:].tolist()]
    # A tokenizer's clean_up_tokenization_spaces would decide what "rain ." reads like: it is switched off.
    decoded = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts = [text.strip() for text in decoded]
    candidates = [Candidate(text=text, score=score) for text, score in zip(texts, scores, strict=True)]
    every = range(0, len(candidates), generation.n_best)
    return [_ranked(candidates[at : at + generation.n_best], generation) for at in every]


def library_settings(generation: GenerationConfig, tokenizer: Any, ends: Sequence[Sequence[int]]) -> Any:
    """Return our options as ``transformers`` names them; everything else has the library's own default.

    The model's own settings were emptied when it was loaded, for ``generate`` fills gaps from them.
    """
    from transformers import GenerationConfig as LibrarySettings

    return LibrarySettings(
        max_new_tokens=generation.max_new_tokens,
        num_beams=generation.beams,
        num_return_sequences=1 if generation.samples else generation.n_best,
        do_sample=False,  # write() draws by itself
        use_cache=True,
        length_penalty=generation.length_penalty if generation.beams > 1 else None,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[end[0] for end in ends if len(end) == 1],
    )


def _stopping(ends: Sequence[Sequence[int]]) -> Any:
    """Return what stops a row at an end of several tokens; ``generate`` itself knows those of one."""
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList([_EndsWith(end) for end in ends if len(end) > 1])


class _EndsWith:
    """Stops the rows of a batch that end with a sequence of tokens."""

    def __init__(self, end: Sequence[int]) -> None:
        self.end = list(end)

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if ids.shape[1] < len(self.end):
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        end = torch.tensor(self.end, device=ids.device)
        return (ids[:, -len(end) :] == end).all(dim=1)


def _find_end(tokens: list[int], ends: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return how many tokens a text has without its end and with it; all of them if it has none."""
    for place in range(len(tokens)):
        for end in ends:
            if tokens[place : place + len(end)] == list(end):
                return place, place + len(end)
    return len(tokens), len(tokens)


def _ranked(candidates: list[Candidate], generation: GenerationConfig) -> tuple[Candidate, ...]:
    """Return candidates of one video, best first, equal texts once."""
    if generation.samples:
        candidates = sorted(candidates, key=lambda one: -one.score)
    by_text: dict[str, Candidate] = {}
    for one in candidates:
        by_text.setdefault(one.text, one)
    return tuple(by_text.values())


def _processors(generation: GenerationConfig, chosen: Any, seeds: list[int]) -> list[Any]:
    """Return what is done to logits in turn; probabilities are noted before anything else is."""
    from transformers.generation import logits_process as library

    noted_first = [chosen] if generation.beams == 1 else []
    processors: list[Any] = library.LogitsProcessorList(noted_first)
    if generation.no_repeat_ngram:
        processors.append(library.NoRepeatNGramLogitsProcessor(generation.no_repeat_ngram))
    if generation.temperature is not None:
        processors.append(library.TemperatureLogitsWarper(float(generation.temperature)))
        if generation.top_k:
            processors.append(library.TopKLogitsWarper(generation.top_k))
        if generation.top_p < 1:
            processors.append(library.TopPLogitsWarper(generation.top_p))
        processors.append(_Gumbel(seeds))
    if generation.beams > 1:
        processors.append(chosen)  # what is searched among; a token that is forbidden is never chosen
    return processors


class _Gumbel:
    """Adds noise to logits (B, V), row by row, so that their largest is a draw from their softmax."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.stack(
            [torch.rand(scores.shape[1], generator=g, dtype=torch.float64) for g in self.generators]
        )
        noise = -(-uniform.clamp(min=1e-300).log()).clamp(min=1e-300).log()
        return scores + noise.to(scores)


class _Chosen:
    """Log probabilities of tokens taken one by one: of the logits of a step, that of the token seen next."""

    def __init__(self, ends: Sequence[Sequence[int]]) -> None:
        self.ends, self.steps, self._begin = ends, list[Tensor](), 0
        self._last: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is None:
            self._begin = ids.shape[1]  # a family may put its own start before the decoder's
        else:
            self._note(ids[:, -1])
        self._last = scores
        return scores

    def _note(self, tokens: Tensor) -> None:
        assert self._last is not None
        taken = self._last.gather(1, tokens[:, None])[:, 0]
        self.steps.append(taken - self._last.logsumexp(dim=1))

    def means(self, sequences: Tensor, beams: Tensor | None) -> Tensor:
        """Return the mean (B,) over what was written in each of ``sequences`` (B, any) up to its end."""
        tokens = sequences[:, self._begin :]
        if len(self.steps) < tokens.shape[1]:
            self._note(tokens[:, len(self.steps)])
        taken_BL = torch.stack(self.steps[: tokens.shape[1]], dim=1)
        lengths = torch.tensor([_find_end(row, self.ends)[1] for row in tokens.tolist()])
        counted_BL = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(taken_BL.device)
        return (taken_BL * counted_BL).sum(dim=1) / counted_BL.sum(dim=1)


class _ChosenInBeams:
    """Log probabilities of tokens that a beam search takes; they are always among the best of their beam.

    ``transformers`` would keep all of them: steps x beams x vocabulary.
    """

    def __init__(self, beams: int) -> None:
        self.kept, self.steps, self._begin = 2 * beams, list[tuple[Tensor, Tensor]](), 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self._begin = self._begin if self.steps else ids.shape[1]
        best = scores.topk(min(self.kept, scores.shape[1]), dim=1)
        self.steps.append((best.values, best.indices))
        return scores

    def means(self, sequences: Tensor, beams: Tensor | None) -> Tensor:
        """Return the mean (B,) over the tokens that came from the rows ``beams`` (B, L), -1 behind them."""
        assert beams is not None
        tokens = sequences[:, self._begin :]
        total = torch.zeros(len(tokens), device=tokens.device)
        for step, (values, indices) in enumerate(self.steps[: beams.shape[1]]):
            row = beams[:, step].long()
            found = (indices[row] == tokens[:, step, None]) & (row >= 0)[:, None]
            total += torch.where(found, values[row], 0.0).sum(dim=1)
        return total / (beams >= 0).sum(dim=1)
