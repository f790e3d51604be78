"""Alarms: the ways in which such a model is known to fail, each with what to try.

Training tells them as they come (log, TensorBoard), the report finds them again in ``log.jsonl``. They look
at means over some log lines, so a single odd batch raises none. Their limits are ours, not stated in the
paper, and wide: an alarm is worth a look, silence proves nothing. A further alarm is one entry of
:data:`RULES`. Whether the language model looks at the signs is asked twice: of the losses of validations, and
of the scores of an evaluation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

WINDOW = 10
"""Log lines whose mean is looked at."""
FEW_CODES = 5.0
"""Perplexity that tells too few characters to spell signs with, also where it never was higher."""
LINES_TO_FALL = 5 * WINDOW
"""Log lines after which a loss should have fallen."""
VALIDATIONS = 3
"""Validations whose mean is looked at."""
IGNORES_SIGNS = 0.8
"""Share of the score that shuffled videos may reach before the language model is said to ignore them."""
IGNORES_SIGNS_LOSS = 0.95
"""Share of the loss of other videos' texts that the loss of the own may reach before that is said."""
IGNORED = "the language model ignores the signs"
LOOK_AT_SIGNS = (
    "longer pretraining, frozen epochs first (--frozen-epochs), a larger mmd_weight, "
    "fewer trained parts of the language model"
)


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What was seen, and what to try.

    Attributes:
        name: of the failure.
        seen: with its numbers.
        remedy: what to try.
        step: of the training, None for scores.
    """

    name: str
    seen: str
    remedy: str
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}; try {self.remedy}"


@dataclass
class Trend:
    """A metric over log lines: the mean of the latest ones, of the first ones, least and largest so far."""

    window: int = WINDOW
    latest: deque[float] = field(init=False)
    count: int = 0
    first: float = math.nan
    least: float = math.inf
    largest: float = -math.inf

    def __post_init__(self) -> None:
        self.latest = deque(maxlen=self.window)

    def add(self, value: float) -> None:
        """Take the next value."""
        self.latest.append(value)
        self.count += 1
        if self.count == self.window:
            self.first = self.mean
        if self.count >= self.window:
            self.least, self.largest = min(self.least, self.mean), max(self.largest, self.mean)

    @property
    def mean(self) -> float:
        """Of the latest values."""
        return fmean(self.latest)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An alarm about a metric of ``log.jsonl``, or its share of another: when it holds, in which words."""

    name: str
    metric: str
    share_of: str | None = None
    window: int = WINDOW
    holds: Callable[[Trend], bool]
    seen: Callable[[Trend], str]
    remedy: str


RULES = (
    Rule(
        name="codebook collapse",
        metric="perplexity",
        holds=lambda trend: trend.mean < max(FEW_CODES, trend.largest / 4),
        seen=lambda trend: f"perplexity of the codes is {trend.mean:.1f}, it was {trend.largest:.1f} at best",
        remedy="vq_sign.quantizer.update ema with revive_dead_after, a k-means start, a lower learning rate",
    ),
    Rule(
        name="quantisation error rising",
        metric="l_q",
        holds=lambda trend: trend.count >= 2 * WINDOW and trend.mean > 2 * trend.least > 0,
        seen=lambda trend: f"l_q is {trend.mean:.3g}, it was {trend.least:.3g}",
        remedy="a lower learning rate, vq_sign.quantizer.update ema, a larger quantizer_weight",
    ),
    Rule(
        name="MMD not falling",
        metric="l_mmd",
        holds=lambda trend: trend.count >= LINES_TO_FALL and trend.mean > 0.95 * trend.first > 0,
        seen=lambda trend: f"l_mmd is {trend.mean:.3g}, it began at {trend.first:.3g}",
        remedy="sign_llm.projector.match_scale, a larger mmd_weight, a higher learning rate",
    ),
    Rule(
        name=IGNORED,
        metric="validate/l_sim",
        share_of="validate/l_sim_shuffled",
        window=VALIDATIONS,
        holds=lambda trend: trend.mean > IGNORES_SIGNS_LOSS,
        seen=lambda trend: f"l_sim on dev is {trend.mean:.0%} of that of other videos' texts",
        remedy=LOOK_AT_SIGNS,
    ),
)


class Watch:
    """Reads log lines one after another and says each alarm once.

    Args:
        past: lines of before: what they would have raised was said then.
    """

    def __init__(self, past: Iterable[Mapping[str, Any]] = ()) -> None:
        self.trends = {rule.name: Trend(rule.window) for rule in RULES}
        self.said: set[str] = set()
        for record in past:
            self(record)

    def __call__(self, record: Mapping[str, Any]) -> list[Alarm]:
        """Return the alarms that a log line raises."""
        step, raised = record.get("step"), []
        for rule in RULES:
            value = _number(record, rule.metric)
            if rule.share_of is not None:
                value /= _number(record, rule.share_of) or math.nan
            if not math.isfinite(value):
                continue
            trend = self.trends[rule.name]
            trend.add(value)
            if rule.name not in self.said and trend.count >= rule.window and rule.holds(trend):
                self.said.add(rule.name)
                at = step if isinstance(step, int) else None
                raised.append(Alarm(name=rule.name, seen=rule.seen(trend), remedy=rule.remedy, step=at))
        return raised


def _number(record: Mapping[str, Any], name: str) -> float:
    """Return a number of a log line; NaN if it has none of this name."""
    value = record.get(name)
    return math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def alarms_of_log(records: Iterable[Mapping[str, Any]]) -> list[Alarm]:
    """Return the alarms of a finished log, in order."""
    watch = Watch()
    return [alarm for record in records for alarm in watch(record)]


def alarms_of_scores(scores: Mapping[str, Any], shuffled: Mapping[str, Any] | None) -> list[Alarm]:
    """Tell whether the language model looks at the signs: scores beside those of shuffled videos.

    Args:
        scores: of a split.
        shuffled: of the same translations against other videos' references; None raises nothing.
    """
    ours, theirs = scores.get("bleu4"), (shuffled or {}).get("bleu4")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (ours, theirs)):
        return []
    if theirs < IGNORES_SIGNS * ours:
        return []
    return [
        Alarm(
            name=IGNORED,
            seen=f"BLEU-4 is {ours:.1f}, with shuffled videos {theirs:.1f}",
            remedy=LOOK_AT_SIGNS,
        )
    ]
