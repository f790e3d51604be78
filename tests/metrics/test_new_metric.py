"""A metric that is added in one place appears in scores, their table, the report and comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest
from sacrebleu.metrics import TER

from signllm.experiments.ablation_table import column_titles
from signllm.inference.model_card import _score_table
from signllm.metrics.hypotheses import Hypothesis, write_hypotheses_and_scores
from signllm.metrics.score_files import format_score_table, score_files
from signllm.metrics.scores import METRICS, MetricKind, ScoreConfig, score
from signllm.reporting.compare import build_table_rows, compare_runs
from signllm.reporting.tables import score_table

REFERENCES = ["heute regnet es im norden", "morgen scheint die sonne"] * 3
HYPOTHESES = ["heute regnet es im süden", "morgen scheint die sonne"] * 3


@pytest.fixture(autouse=True)
def ter(monkeypatch: pytest.MonkeyPatch) -> float:
    """Add the translation edit rate, and return its value for the sentences according to sacrebleu."""
    monkeypatch.setitem(METRICS, "ter", MetricKind("TER", lambda _config: TER(), higher_is_better=False))
    return float(TER().corpus_score(HYPOTHESES, [REFERENCES]).score)


def test_the_metric_is_scored_with_its_interval_and_signature(ter: float) -> None:
    scores = score(HYPOTHESES, REFERENCES, bootstrap=50)
    assert scores["ter"] == pytest.approx(ter)
    low, high = scores["intervals"]["ter"]
    assert low <= ter <= high
    assert scores["signature"].split("; ")[-1].startswith("TER ")


def test_the_metric_is_printed_with_its_significance(ter: float, tmp_path: Path) -> None:
    for name, lines in (("system", HYPOTHESES), ("baseline", REFERENCES), ("references", REFERENCES)):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    files = [tmp_path / "system"], tmp_path / "references"
    scores = score_files(*files, ScoreConfig(), baseline=[tmp_path / "baseline"], bootstrap=50)
    (line,) = (line for line in format_score_table(scores).splitlines() if line.strip().startswith("ter"))
    assert f"{ter:.2f}" in line
    assert f"{ter:+.2f} (" in line  # the baseline has no error


def test_reports_cards_and_comparisons_show_it(ter: float, tmp_path: Path) -> None:
    lines = [
        Hypothesis(place=n, id=str(n), hypothesis=hypothesis, reference=reference, characters=[], words=[])
        for n, (hypothesis, reference) in enumerate(zip(HYPOTHESES, REFERENCES, strict=True))
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"stage": "finetune", "config": {}}')
    record = score(HYPOTHESES, REFERENCES)
    write_hypotheses_and_scores(tmp_path / "run", "test", lines, record)
    page = str(score_table({"test": record}))
    assert "TER" in page
    assert f"{ter:.2f}" in page
    assert f"| {ter:.2f} |" in _score_table([record | {"split": "test", "checkpoint": "step-1"}])
    names, values = build_table_rows(compare_runs([tmp_path / "run"], "test"))
    assert dict(zip(names, values, strict=True))["TER"] == f"{ter:.2f}"
    assert "TER" in column_titles()
