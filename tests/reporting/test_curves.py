"""Training curves: the lines of each chart, and records that were logged twice."""

from __future__ import annotations

from pathlib import Path

from signllm.reporting.run_folder import RunFolder
from signllm.reporting.training import group_by_quantity, training_phases


def lines(log: list[dict[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    return {
        name: {line.name: list(line.points) for line in series}
        for name, series in group_by_quantity(log).items()
    }


def test_training_and_held_out_share_a_chart_and_the_later_record_counts() -> None:
    log = [{"step": 1, "l_sim": 3.0}, {"step": 1, "l_sim": 2.0}, {"step": 1, "validate/l_sim": 2.5}]
    assert lines(log) == {"l_sim": {"training": [(1, 2.0)], "held out": [(1, 2.5)]}}


def test_totals_of_other_terms_are_not_compared() -> None:
    trained, held_out = {"step": 1, "loss": 3.0, "l_vq": 1.0}, {"step": 1, "validate/loss": 2.0}
    assert lines([trained, held_out])["loss"] == {"training": [(1, 3.0)]}
    complete = held_out | {"validate/l_vq": 0.9}
    assert lines([trained, complete])["loss"] == {"training": [(1, 3.0)], "held out": [(1, 2.0)]}


def test_the_loss_with_another_video_s_text_is_a_line_of_its_own() -> None:
    log = [{"step": 1, "l_sim": 2.0}, {"step": 1, "validate/l_sim": 2.5, "validate/l_sim_shuffled": 3.5}]
    own, other = (
        {"training": [(1, 2.0)], "held out": [(1, 2.5)]},
        {"held out, with another video's text": [(1, 3.5)]},
    )
    assert lines(log) == {"l_sim": own | other}


def test_single_measurements_are_not_called_constant() -> None:
    log = [{"step": n, "l_sim": 1.0 / n, "words": 18.0} for n in (1, 2)]
    log.append({"step": 2, "validate/l_sim": 2.5, "validate/mmd_fixed": 0.25, "validate/bleu4": 7.0})
    log.append({"step": 4, "validate/bleu4": 9.0})
    [phase] = training_phases(RunFolder(path=Path("run"), log=list(log)))
    assert phase.constant == ["Sign words 18"]
    assert phase.measured_once == ["MMD with a fixed kernel (held out) 0.25"]
    assert "BLEU-4, held out" in [chart.title for chart in phase.charts]
    pictures = "".join(chart.picture for chart in phase.charts)
    assert "Translation loss: training ends at 0.5; held out ends at 2.5" in pictures
