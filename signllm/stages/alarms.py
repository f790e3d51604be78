"""Alarms: known ways in which such a model fails to learn, each with advice.

Training logs them as they occur (log and TensorBoard), and the report finds them again in ``log.jsonl``.
Rules use means over several log lines, so that a single odd batch raises no alarm. Their limits are ours, not
stated in the paper, and wide: an alarm deserves attention, and its absence proves nothing. A further alarm is
one entry of :data:`RULES`. Whether the language model uses the signs is checked twice: in the losses of
validations, and in the scores of an evaluation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeGuard

WINDOW = 10
"""Number of log lines that a mean is taken over."""
FEW_CODES = 5.0
"""Perplexity that means too few characters to represent signs, even if it was never higher."""
LINES_TO_FALL = 5 * WINDOW
"""Number of log lines after which a loss should have fallen."""
VALIDATIONS = 3
"""Number of validations that a mean is taken over."""
IGNORES_SIGNS = 0.8
"""Share of the score that shuffled videos may reach before the signs count as ignored."""
IGNORES_SIGNS_LOSS = 0.95
"""The same limit for losses: the loss of the right text as a share of the loss of another video's text."""
IGNORED = "the language model ignores the signs"
STRENGTHEN_SIGNS = (
    "longer pretraining, frozen epochs first (--frozen-epochs), a larger mmd_weight, "
    "fewer trained parts of the language model"
)


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What was observed and what to try.

    Attributes:
        name: name of the failure.
        observation: what was observed, with numbers.
        remedy: what to try.
        step: training step; None for an alarm about scores.
    """

    name: str
    observation: str
    remedy: str
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.observation}; try {self.remedy}"


@dataclass
class Trend:
    """A metric over log lines: the mean of the latest values, of the first ones, and the extremes so far."""

    window: int = WINDOW
    latest: deque[float] = field(init=False)
    count: int = 0
    first: float = math.nan
    least: float = math.inf
    largest: float = -math.inf

    def __post_init__(self) -> None:
        self.latest = deque(maxlen=self.window)

    def add(self, value: float) -> None:
        """Add the next value."""
        self.latest.append(value)
        self.count += 1
        if self.count == self.window:
            self.first = self.mean
        if self.count >= self.window:
            self.least, self.largest = min(self.least, self.mean), max(self.largest, self.mean)

    @property
    def mean(self) -> float:
        """Mean of the latest values."""
        return fmean(self.latest)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An alarm about a metric of ``log.jsonl``.

    Attributes:
        name: name of the alarm.
        metric: key of the metric.
        share_of: key of another metric by which the first is divided; None divides by nothing.
        window: number of values that a mean is taken over.
        holds: returns whether the alarm is raised.
        observation: describes the trend, with numbers.
        remedy: what to try.
    """

    name: str
    metric: str
    share_of: str | None = None
    window: int = WINDOW
    holds: Callable[[Trend], bool]
    observation: Callable[[Trend], str]
    remedy: str


RULES = (
    Rule(
        name="codebook collapse",
        metric="perplexity",
        holds=lambda trend: trend.mean < max(FEW_CODES, trend.largest / 4),
        observation=lambda trend: (
            f"perplexity of the codes is {trend.mean:.1f}, it was {trend.largest:.1f} at best"
        ),
        remedy="vq_sign.quantizer.update ema with revive_dead_after, a k-means start, a lower learning rate",
    ),
    Rule(
        name="quantisation error rising",
        metric="l_q",
        holds=lambda trend: trend.count >= 2 * WINDOW and trend.mean > 2 * trend.least > 0,
        observation=lambda trend: f"l_q is {trend.mean:.3g}, it was {trend.least:.3g}",
        remedy="a lower learning rate, vq_sign.quantizer.update ema, a larger quantizer_weight",
    ),
    Rule(
        name="MMD not falling",
        metric="l_mmd",
        holds=lambda trend: trend.count >= LINES_TO_FALL and trend.mean > 0.95 * trend.first > 0,
        observation=lambda trend: f"l_mmd is {trend.mean:.3g}, it began at {trend.first:.3g}",
        remedy="sign_llm.projector.match_scale, a larger mmd_weight, a higher learning rate",
    ),
    Rule(
        name=IGNORED,
        metric="validate/l_sim",
        share_of="validate/l_sim_shuffled",
        window=VALIDATIONS,
        holds=lambda trend: trend.mean > IGNORES_SIGNS_LOSS,
        observation=lambda trend: f"l_sim on dev is {trend.mean:.0%} of that of other videos' texts",
        remedy=STRENGTHEN_SIGNS,
    ),
)


class AlarmMonitor:
    """Receives log lines in order and returns each alarm once.

    Args:
        past: earlier lines, whose alarms were raised before and are not raised again.
    """

    def __init__(self, past: Iterable[Mapping[str, Any]] = ()) -> None:
        self.trends = {rule.name: Trend(rule.window) for rule in RULES}
        self.raised_before: set[str] = set()
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
            if rule.name not in self.raised_before and trend.count >= rule.window and rule.holds(trend):
                self.raised_before.add(rule.name)
                at = step if isinstance(step, int) else None
                raised.append(
                    Alarm(name=rule.name, observation=rule.observation(trend), remedy=rule.remedy, step=at)
                )
        return raised


def _number(record: Mapping[str, Any], name: str) -> float:
    """Return a number of a log line; NaN if the line has no number of this name."""
    value = record.get(name)
    return math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def alarms_of_log(records: Iterable[Mapping[str, Any]]) -> list[Alarm]:
    """Return the alarms of a finished log, in order."""
    monitor = AlarmMonitor()
    return [alarm for record in records for alarm in monitor(record)]


def alarms_of_scores(scores: Mapping[str, Any], shuffled: Mapping[str, Any] | None) -> list[Alarm]:
    """Return an alarm if the language model ignores the signs, judged by the scores of shuffled videos.

    Args:
        scores: scores of a split.
        shuffled: scores of the same hypotheses against other videos' references; None raises no alarm.
    """
    own, others = scores.get("bleu4"), (shuffled or {}).get("bleu4")
    if not (_is_number(own) and _is_number(others)) or others < IGNORES_SIGNS * own:
        return []
    return [
        Alarm(
            name=IGNORED,
            observation=f"BLEU-4 is {own:.1f}, with shuffled videos {others:.1f}",
            remedy=STRENGTHEN_SIGNS,
        )
    ]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
