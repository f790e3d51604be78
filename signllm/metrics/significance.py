"""Statistical significance: bootstrap confidence intervals, and tests of the difference between two systems.

The methods are those of sacrebleu (Koehn 2004; Riezler and Maxwell 2005) and work for every metric. They
account for the random choice of *sentences* only. How much a score varies with the training seed can only be
measured by training with several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

Test = Literal["bootstrap", "randomization"]
RESAMPLES = 1000
"""Default number of bootstrap resamples, as in sacrebleu."""


def bootstrap_intervals(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metrics: Mapping[str, Metric],
    *,
    samples: int = RESAMPLES,
) -> dict[str, list[float]]:
    """Return metric → ends of its 95 % bootstrap confidence interval over sentences.

    Args:
        hypotheses: normalized sentences of a system.
        references: the reference of each hypothesis.
        metrics: metrics by name.
        samples: number of bootstrap samples, each with as many sentences, drawn with replacement.
    """
    intervals = {}
    for name, metric in metrics.items():
        (result,) = _run_sacrebleu_test([hypotheses], references, metric, "bs", samples)
        intervals[name] = [float(result.mean - result.ci), float(result.mean + result.ci)]
    return intervals


def compute_paired_differences(
    hypotheses: Sequence[str],
    baseline: Sequence[str],
    references: Sequence[str],
    metrics: Mapping[str, Metric],
    *,
    test: Test = "bootstrap",
    samples: int = 0,
) -> dict[str, dict[str, float]]:
    """Return, for each metric, the difference of a system to a baseline and its p-value.

    Args:
        hypotheses: normalized sentences of the system.
        baseline: normalized sentences of the baseline, for the same videos.
        references: the reference of each sentence.
        metrics: metrics by name.
        test: paired bootstrap, or approximate randomization.
        samples: number of resamples or shuffles; 0 uses sacrebleu's default, 1000 or 10000.

    Returns:
        metric → ``difference`` (system minus baseline) and ``p``, the probability of a difference at least as
        large if the two systems were equally good.
    """
    kind = {"bootstrap": "bs", "randomization": "ar"}[test]
    results = {}
    for name, metric in metrics.items():
        first, second = _run_sacrebleu_test([baseline, hypotheses], references, metric, kind, samples)
        difference = float(second.score - first.score)
        # sacrebleu counts only draws with a larger difference, so two equal systems would get p near 0.
        results[name] = {"difference": difference, "p": float(second.p_value) if difference else 1.0}
    return results


def _run_sacrebleu_test(
    systems: Sequence[Sequence[str]], references: Sequence[str], metric: Metric, kind: str, samples: int
) -> list[Any]:
    """Return sacrebleu's result for every system; the first one is the baseline of the others."""
    from sacrebleu.significance import PairedTest

    named = [(str(place), system) for place, system in enumerate(systems)]
    _, columns = PairedTest(named, {"metric": metric}, [references], kind, samples)()
    (results,) = (column for title, column in columns.items() if title != "System")
    return list(results)
