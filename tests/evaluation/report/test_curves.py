"""Curves: which lines stand in one chart, and what is logged twice."""

from __future__ import annotations

from pathlib import Path

from signllm.evaluation.report.run_folder import RunFolder
from signllm.evaluation.report.training import grouped, training_charts


def lines(log: list[dict[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    return {name: {one.name: list(one.points) for one in series} for name, series in grouped(log).items()}


def test_held_out_values_stand_beside_those_of_training_and_the_later_record_of_a_step_stands() -> None:
    log = [{"step": 1, "l_sim": 3.0}, {"step": 1, "l_sim": 2.0}, {"step": 1, "validate/l_sim": 2.5}]
    assert lines(log) == {"l_sim": {"training": [(1, 2.0)], "held out": [(1, 2.5)]}}


def test_totals_of_other_terms_are_not_compared() -> None:
    trained, held_out = {"step": 1, "loss": 3.0, "l_vq": 1.0}, {"step": 1, "validate/loss": 2.0}
    assert lines([trained, held_out])["loss"] == {"training": [(1, 3.0)]}
    whole = held_out | {"validate/l_vq": 0.9}
    assert lines([trained, whole])["loss"] == {"training": [(1, 3.0)], "held out": [(1, 2.0)]}


def test_the_loss_of_other_videos_texts_stands_beside_that_of_the_own() -> None:
    log = [{"step": 1, "l_sim": 2.0}, {"step": 1, "validate/l_sim": 2.5, "validate/l_sim_shuffled": 3.5}]
    own, other = (
        {"training": [(1, 2.0)], "held out": [(1, 2.5)]},
        {"held out, other videos' texts": [(1, 3.5)]},
    )
    assert lines(log) == {"l_sim": own | other}


def test_what_was_measured_once_is_not_told_to_be_constant() -> None:
    log = [{"step": n, "l_sim": 1.0 / n, "words": 18.0} for n in (1, 2)]
    log.append({"step": 2, "validate/l_sim": 2.5, "validate/mmd_fixed": 0.25, "validate/bleu4": 7.0})
    log.append({"step": 4, "validate/bleu4": 9.0})
    told = str(training_charts(RunFolder(path=Path("run"), log=list(log))))
    assert "Constant throughout: Sign words 18." in told
    assert "Measured once: Discrepancy by a fixed measure (held out) 0.25." in told
    assert "BLEU-4, held out" in told
    assert "Translation loss: training ends at 0.5; held out ends at 2.5" in told
