"""The table of ablations: its values equal those computed by hand and by sacrebleu."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import sacrebleu

from signllm.cli import main
from signllm.errors import UsageError
from signllm.experiments.ablation_table import column_titles, format_row, read_ablation_table
from signllm.metrics.hypotheses import Hypothesis, write_hypotheses_and_scores
from signllm.metrics.scores import score

REFERENCES = [
    "am abend regen im norden und osten",
    "morgen scheint die sonne im ganzen land",
    "wind aus dem westen",
] * 8
CLOSE = ["am abend regen im norden", "morgen scheint die sonne im land", "wind aus dem osten"] * 8
FAR = ["heute schnee im norden und osten", "morgen regen im ganzen land", "die sonne scheint"] * 8


def write(out: Path, name: str, seed: int, texts: list[str], *, convention: str = "phoenix2014t") -> None:
    from signllm.metrics.scores import ScoreConfig

    run = out / name / f"seed-{seed}" / "finetune"
    run.mkdir(parents=True)
    lines = [
        Hypothesis(place=i, id=f"v{i}", hypothesis=text, reference=reference, characters=[], words=[])
        for i, (text, reference) in enumerate(zip(texts, REFERENCES, strict=True))
    ]
    scores = score(texts, REFERENCES, ScoreConfig(convention=convention), bootstrap=0)
    write_hypotheses_and_scores(run, "dev", lines, scores | {"split": "dev"})


def test_means_deviations_and_differences_over_seeds(tmp_path: Path) -> None:
    mixed = [*REFERENCES[:6], *CLOSE[6:]]
    for seed, texts in enumerate((CLOSE, mixed)):
        write(tmp_path, "full", seed, texts)
    for seed, texts in enumerate((FAR, FAR, FAR)):
        write(tmp_path, "no_mmd", seed, texts)
    full, without = read_ablation_table(tmp_path, "dev").rows
    bleu = [
        sacrebleu.corpus_bleu(
            texts, [REFERENCES], smooth_method="floor", smooth_value=0.0, tokenize="none"
        ).score
        for texts in (CLOSE, mixed, FAR)
    ]
    assert full.mean["bleu4"] == pytest.approx(statistics.mean(bleu[:2]))
    assert full.sd["bleu4"] == pytest.approx(statistics.stdev(bleu[:2]))
    assert full.gains == {}
    assert without.seeds == (0, 1, 2)
    assert without.sd["bleu4"] == 0
    assert without.gains == pytest.approx({0: bleu[2] - bleu[0], 1: bleu[2] - bleu[1]})
    assert without.p is not None
    assert without.p < 0.01


def test_equal_systems_have_a_large_p_value(tmp_path: Path) -> None:
    write(tmp_path, "full", 0, [*CLOSE[:-1], REFERENCES[-1]])
    write(tmp_path, "bpe", 0, CLOSE)
    row = read_ablation_table(tmp_path, "dev").rows[1]
    assert row.p is not None
    assert row.p > 0.05


def test_missing_seeds_and_rows_are_shown(tmp_path: Path) -> None:
    write(tmp_path, "full", 0, CLOSE)
    write(tmp_path, "full", 1, CLOSE)
    write(tmp_path, "bpe", 1, CLOSE)
    (tmp_path / "lora" / "seed-0").mkdir(parents=True)
    table = read_ablation_table(tmp_path, "dev")
    rows = [dict(zip(column_titles(), format_row(row, table), strict=True)) for row in table.rows]
    assert [row["seeds"] for row in rows] == ["2", "1 of 2", "0"]
    assert rows[1]["BLEU-4 - full"] == "+0.0"
    assert rows[1]["p"] == "1.00"
    assert rows[2]["BLEU-4"] == "-"


def test_scores_of_different_rules_or_videos_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "full", 0, CLOSE)
    write(tmp_path, "bpe", 0, CLOSE, convention="csl-daily")
    with pytest.raises(UsageError, match="csl-daily"):
        read_ablation_table(tmp_path, "dev")
    with pytest.raises(UsageError, match="no ablation has scores"):
        read_ablation_table(tmp_path, "test")


def test_the_verb_prints_the_table_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "full", 0, CLOSE)
    write(tmp_path, "no_mmd", 0, FAR)
    assert main(["ablate", "table", str(tmp_path), "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["full", "no_mmd"]
    assert (tmp_path / "ablations.html").is_file()
    assert main(["ablate", "table", str(tmp_path / "nothing")]) == 2
