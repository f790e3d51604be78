"""How sure a score is: intervals by the bootstrap, and whether two systems differ by more than chance.

All of it is sacrebleu's (Koehn 2004; Riezler and Maxwell 2005), for every metric alike. It is about the
choice of *sentences* only; how much a score moves with the seed of the training is what several seeds tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

from signllm.evaluation.scores import METRICS, SAMPLES

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

Test = Literal["bootstrap", "randomization"]


def intervals(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metrics: Mapping[str, Metric],
    *,
    samples: int = SAMPLES,
) -> dict[str, list[float]]:
    """Return of each metric the ends of its 95 % bootstrap interval over sentences.

    Args:
        hypotheses: normalised sentences of a system.
        references: the reference of each.
        metrics: by name.
        samples: how often as many sentences are drawn again, with replacement.
    """
    found = {}
    for name, metric in metrics.items():
        (result,) = _tested([hypotheses], references, metric, "bs", samples)
        found[name] = [float(result.mean - result.ci), float(result.mean + result.ci)]
    return found


def differences(
    hypotheses: Sequence[str],
    baseline: Sequence[str],
    references: Sequence[str],
    metrics: Mapping[str, Metric],
    *,
    test: Test = "bootstrap",
    samples: int = 0,
) -> dict[str, dict[str, float]]:
    """Return of each metric by how much a system beats a baseline, and the p-value of that.

    Args:
        hypotheses: normalised sentences of the system.
        baseline: those of the other one, of the same videos.
        references: the reference of each.
        metrics: by name.
        test: paired bootstrap, or approximate randomization.
        samples: resamples or shuffles; 0 takes sacrebleu's 1000 or 10000.

    Returns:
        metric → ``difference`` and ``p``: how often chance alone would give so large a difference.
    """
    kind = {"bootstrap": "bs", "randomization": "ar"}[test]
    found = {}
    for name, metric in metrics.items():
        first, second = _tested([baseline, hypotheses], references, metric, kind, samples)
        difference = float(second.score - first.score)
        # sacrebleu counts only draws that differ by more, and would call two equal systems different
        found[name] = {"difference": difference, "p": float(second.p_value) if difference else 1.0}
    return found


def _tested(
    systems: Sequence[Sequence[str]], references: Sequence[str], metric: Metric, kind: str, samples: int
) -> list[Any]:
    """Return sacrebleu's result of every system, the first of which is the baseline of the others."""
    from sacrebleu.significance import PairedTest

    named = [(str(place), system) for place, system in enumerate(systems)]
    _, columns = PairedTest(named, {"metric": metric}, [references], kind, samples)()
    (results,) = (column for title, column in columns.items() if title != "System")
    return list(results)


def over_seeds(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return ``mean`` and ``sd`` (n - 1 in its denominator; of one run 0) of each metric over runs."""
    columns = {name: [record[name] for record in records] for name in METRICS}
    spread = stdev if len(records) > 1 else lambda _values: 0.0
    return {
        "mean": {name: mean(values) for name, values in columns.items()},
        "sd": {name: float(spread(values)) for name, values in columns.items()},
    }
