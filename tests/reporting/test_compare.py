"""Comparison of runs: the table, missing scores, intervals, and the figure and page that are written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from signllm import cli
from signllm.errors import UsageError
from signllm.metrics.hypotheses import Hypothesis, write_hypotheses_and_scores
from signllm.metrics.scores import score
from signllm.reporting.compare import (
    ComparedRun,
    build_table_rows,
    compare_runs,
    format_count,
    group_over_seeds,
    list_warnings,
)
from signllm.reporting.compare_page import draw_scores, shorten_run_names, write_comparison

REFERENCES = [
    "heute regnet es im norden",
    "morgen scheint die sonne",
    "am abend wird es im süden wieder kalt",
]
HYPOTHESES = ["heute regnet es im norden", "morgen scheint sonne", "am abend wird es im westen wieder kalt"]


def write_run(
    folder: Path, llm: Path | str, *, seed: int = 0, good: int = 3, learning_rate: float = 1e-3
) -> Path:
    """Write the files that a comparison reads; ``good`` of every three sentences are translated well."""
    folder.mkdir(parents=True)
    settings = {
        "sign_llm": {"language_model": {"path": str(llm)}},
        "training": {"seed": seed, "learning_rate": learning_rate},
    }
    (folder / "config.json").write_text(json.dumps({"stage": "finetune", "config": settings}))
    texts = [*HYPOTHESES[:good], *["nichts"] * (3 - good)] * 4
    lines = [
        Hypothesis(place=n, id=str(n), hypothesis=text, reference=REFERENCES[n % 3], characters=[], words=[])
        for n, text in enumerate(texts)
    ]
    write_hypotheses_and_scores(folder, "test", lines, score(texts, REFERENCES * 4, bootstrap=100))
    return folder


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    """The configuration of a small LLaMA, without weights."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaConfig(vocab_size=100, **sizes).save_pretrained(tmp_path / "small-llama")
    return tmp_path / "small-llama"


@pytest.fixture
def sweep(llm: Path, tmp_path: Path) -> list[Path]:
    """Two seeds with a small model, a run whose model is known by name only, and a run without scores."""
    runs = tmp_path / "runs"
    folders = [write_run(runs / "b-large", "org/7b", good=2)]
    parameters = {"language_model": {"trained": 9, "frozen": 6_738_415_616}}
    (folders[0] / "startup.json").write_text(json.dumps({"parameters": parameters}))
    folders += [write_run(runs / f"a-{seed}", llm, seed=seed, good=2 + seed) for seed in (0, 1)]
    folders += [write_run(runs / "c", llm)]
    (runs / "c" / "scores.test.json").unlink()
    return folders


def test_the_table_is_sorted_by_the_size_of_the_language_model(sweep: list[Path], llm: Path) -> None:
    compared = compare_runs(sweep, "test")
    embeddings, block = 2 * 100 * 8, 4 * 8 * 8 + 3 * 8 * 16 + 3 * 8
    assert [(Path(run.run).name, run.parameters, run.family) for run in compared] == [
        ("a-0", embeddings + block, "llama"),
        ("c", embeddings + block, "llama"),
        ("a-1", embeddings + block, "llama"),
        ("b-large", 6_738_415_616, ""),
    ]
    table = build_table_rows(compared)
    assert table[1][:4] == (str(sweep[1]), "small-llama", format_count(embeddings + block), "0")
    assert table[2][4:] == ("-",) * 7
    assert table[4][1:3] == ("7b", "6.74 B")
    scores = [json.loads((run / "scores.test.json").read_text())["bleu4"] for run in sweep[:3]]
    assert [table[n][5] for n in (4, 1, 3)] == [f"{bleu4:.2f}" for bleu4 in scores]


def test_runs_that_differ_in_the_seed_only_are_one_point(sweep: list[Path], llm: Path) -> None:
    small, large = group_over_seeds(compare_runs(sweep, "test"))
    low, high = (json.loads((run / "scores.test.json").read_text())["bleu4"] for run in sweep[1:3])
    assert (small.runs, small.bleu4, small.spread) == (
        2,
        pytest.approx((low + high) / 2),
        pytest.approx((high - low) / 2**0.5),
    )
    assert build_table_rows(compare_runs(sweep, "test"))[-1][0] == "mean of 2 seeds"
    assert (large.runs, large.spread) == (1, compare_runs(sweep, "test")[-1].interval)
    other = write_run(sweep[0].parent / "other", llm, seed=2, learning_rate=1e-4)
    points = group_over_seeds(compare_runs([*sweep, other], "test"))
    assert sorted(point.runs for point in points) == [1, 1, 2]


def test_the_interval_is_that_of_the_scores(sweep: list[Path]) -> None:
    path = sweep[1] / "scores.test.json"
    scores = json.loads(path.read_text())
    low, high = scores["intervals"]["bleu4"]
    assert compare_runs([sweep[1]], "test")[0].interval == pytest.approx((high - low) / 2)
    for other in ({}, {"bleu4": None}, {"bleu4": [1, "x"]}):
        path.write_text(json.dumps(scores | {"intervals": other}))
        assert compare_runs([sweep[1]], "test")[0].interval is None


def test_missing_and_incomparable_scores_are_reported(sweep: list[Path]) -> None:
    (warning,) = list_warnings(compare_runs(sweep, "test"))
    assert f"{sweep[3]}: no scores.test.json" in warning
    assert f"signllm evaluate --run {sweep[3]} --data SHARDS --split test" in warning
    scores = json.loads((sweep[0] / "scores.test.json").read_text())
    (sweep[0] / "scores.test.json").write_text(json.dumps(scores | {"signature": "another"}))
    assert "2 kinds of signature" in list_warnings(compare_runs(sweep, "test"))[1]
    (sweep[3] / "config.json").write_text('{"stage": "pretrain"}')
    assert "stage pretrain" in list_warnings(compare_runs(sweep, "test"))[0]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "signllm compare RUN"),
        (["nowhere"], "there is no such run folder"),
        (["{run}", "--split", "dev"], "no run has scores of the split dev"),
        (["{run}", "--split", "test", "--out", "x.jpg"], "ends in .html"),
    ],
)
def test_usage_errors(
    words: list[str], problem: str, sweep: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *(word.format(run=sweep[0]) for word in words)]) == 2
    assert problem in capsys.readouterr().err


def test_the_figure_distinguishes_families_by_their_marker() -> None:
    """The sizes, scores and error bars of the figure are those of the points."""

    def compared_run(llm: str, family: str, size: int, bleu4: float, seed: int = 0) -> ComparedRun:
        scores = {"bleu4": bleu4}
        return ComparedRun(
            run=f"{llm}-{seed}", llm=llm, family=family, parameters=size, settings=llm, seed=seed,
            scores=scores, interval=1.5,
        )  # fmt: skip

    runs = [
        compared_run("a", "llama", 10**9, 10.0),
        compared_run("b", "t5", 2 * 10**9, 13.0),
        compared_run("b", "t5", 2 * 10**9, 15.0, 1),
    ]
    [axes] = draw_scores(group_over_seeds(runs), "test").axes
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1 B", "2 B"]
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    drawn = {bars.get_label(): bars for bars in axes.containers}
    assert drawn.keys() == {"llama", "t5"}
    marks = {name: bars[0].get_marker() for name, bars in drawn.items()}
    assert marks["llama"] != marks["t5"]
    assert [bars[0].get_xydata().tolist() for bars in drawn.values()] == [[[1e9, 10.0]], [[2e9, 14.0]]]
    [[low, high]] = drawn["t5"][2][0].get_segments()
    assert (low[1], high[1]) == pytest.approx((14 - 2**0.5, 14 + 2**0.5))
    with pytest.raises(UsageError, match="the size of no language model is known"):
        draw_scores(group_over_seeds([compared_run("a", "", 0, 1.0)]), "test")


def test_the_command_prints_the_table_and_writes_page_and_picture(
    sweep: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", *map(str, sweep), "--split", "test"]
    page, picture = tmp_path / "new" / "scaling.html", tmp_path / "scaling.png"
    assert cli.main([*words, "--out", str(page)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + 4 + 1
    assert out.splitlines()[0].split()[:3] == ["run", "language", "model"]
    assert "no scores.test.json" in err
    text = page.read_text()
    scores, differing = (part.count("<tr>") for part in text.split("<h2>")[1:] if "<tr>" in part)
    assert scores == 6
    assert differing == 1 + 2  # the language model and the seed
    assert text.count("<svg") == 1  # the figure; these runs have no training curves
    assert "BLEU-4 over the parameters" in text
    assert "no scores.test.json" in text
    assert cli.main([*words, "--out", str(picture), "--json"]) == 0
    records: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [record["parameters"] for record in records][-1] == 6_738_415_616
    assert {record["problem"] == "" for record in records} == {True, False}
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 400
        assert drawn.convert("L").getextrema() == (0, 255)
    shutil.rmtree(tmp_path / "new")
    write_comparison(compare_runs(sweep, "test"), "test", tmp_path / "scaling.svg")
    assert "<svg" in (tmp_path / "scaling.svg").read_text()


def test_runs_are_compared_with_the_first_if_they_translated_the_same_videos(sweep: list[Path]) -> None:
    first, second = sweep[1], sweep[2]
    by_name = {Path(run.run).name: run for run in compare_runs([first, second], "test")}
    scores = [json.loads((run / "scores.test.json").read_text())["bleu4"] for run in (first, second)]
    assert by_name["a-0"].gain is None
    assert by_name["a-1"].gain == pytest.approx(scores[1] - scores[0])
    assert 0 < by_name["a-1"].p <= 1
    assert by_name["a-1"].differing == {"training.seed": "1"}
    path = second / "hypotheses.test.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    assert {run.gain for run in compare_runs([first, second], "test")} == {None}


def test_run_names_are_shortened_to_their_differing_parts() -> None:
    assert shorten_run_names(["/x/full/seed-0/ft", "/x/no/seed-1/ft"]) == ["full/seed-0", "no/seed-1"]
    assert shorten_run_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert shorten_run_names(["runs/a"]) == ["a"]
    assert shorten_run_names(["a", "a/b"]) == ["a", "a/b"]


def test_charts_contain_both_phases_of_fine_tuning(sweep: list[Path], tmp_path: Path) -> None:
    for run in sweep[1:3]:
        (run / "frozen").mkdir()
        for folder, steps in ((run / "frozen", (10, 20)), (run, (10,))):
            lines = [json.dumps({"step": step, "l_sim": 1.0 / step}) for step in steps]
            (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    write_comparison(compare_runs(sweep[1:3], "test"), "test", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "the encoder is trained too" in page
    assert "Translation loss: a-0 ends at 0.1; a-1 ends at 0.1" in page
    [drawn] = re.findall(r'<g class="line0"><path d="M([^"]*)"', page)
    assert len(drawn.split("L")) == 3  # 10, 20, and 10 more
