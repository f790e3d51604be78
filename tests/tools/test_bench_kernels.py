"""The benchmark runs on small shapes, and says of everybody what it must: time, memory, error, or why not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm

CHECKOUT = Path(__file__).parents[2]
PACKAGES = {"POT": "ot", "geomloss": "geomloss", "faiss": "faiss", "vector": "vector_quantize_pytorch"}
ALWAYS = {
    "vq_assign": {"ours", "bare product", "torch.cdist + argmin"},
    "sinkhorn": {"ours", "bare products"},
    "mmd": {"ours", "bare products", "naive torch"},
}


def bench(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path or "")}
    command = [warm.python(), str(CHECKOUT / "tools" / "bench_kernels"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What one quick run of everything prints and writes."""
    file = tmp_path_factory.mktemp("bench") / "new" / "bench.json"
    done = bench("--quick", "--rounds", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, json.loads(file.read_text())


def rows(record: dict[str, Any], operator: str) -> list[dict[str, Any]]:
    return [row for row in record["rows"] if row["operator"] == operator]


def test_the_json_says_where_and_with_what_it_ran(measured: tuple[str, dict[str, Any]]) -> None:
    _, record = measured
    assert record["date"].endswith("+00:00")
    assert record["machine"]["cpu"]
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["torch"]
    assert record["threads"] == 1
    assert record["implementation"]["implementation"] == "torch"
    assert (record["device"], record["quick"], record["seed"]) == ("cpu", True, 0)


@pytest.mark.parametrize("operator", ALWAYS)
def test_everybody_has_a_row_with_time_error_and_memory(
    operator: str, measured: tuple[str, dict[str, Any]]
) -> None:
    text, record = measured
    cases = {row["case"] for row in rows(record, operator)}
    assert len(cases) == 2
    for case in cases:
        assert f"{operator} {case} (error: " in text
        here = {row["contender"]: row for row in rows(record, operator) if row["case"] == case}
        assert ALWAYS[operator] <= set(here)
        for row in here.values():
            needed = [p for name, p in PACKAGES.items() if row["contender"].startswith(name)]
            if needed and importlib.util.find_spec(needed[0]) is None:
                assert (row["status"], row["best_s"], row["runs"]) == ("not installed", None, 0)
                continue
            assert row["status"] in ("ok", "limit"), row
            assert 0 < row["best_s"] <= row["median_s"]
            assert row["times_ours"] == pytest.approx(row["best_s"] / here["ours"]["best_s"])
            assert (row["error"] is None) == (row["role"] == "bound")
            assert row["extra_bytes"] is not None or not Path("/proc/self/clear_refs").exists()
            assert row["contender"] in text


def test_ours_is_exact(measured: tuple[str, dict[str, Any]]) -> None:
    _, record = measured
    ours = {o: [r for r in rows(record, o) if r["role"] == "ours"] for o in ALWAYS}
    assert [row["detail"]["wrong_rows"] for row in ours["vq_assign"]] == [0, 0]
    assert all(row["error"] < 2e-5 for row in ours["sinkhorn"])
    assert all(row["error"] < 1e-4 for row in ours["mmd"])


def test_a_solver_goes_as_far_as_our_error(measured: tuple[str, dict[str, Any]]) -> None:
    _, record = measured
    for row in rows(record, "sinkhorn"):
        ours = next(r for r in rows(record, "sinkhorn") if r["role"] == "ours" and r["case"] == row["case"])
        if row["role"] == "rival" and row["status"] == "ok":
            assert row["error"] <= max(1e-5, ours["error"])
            assert "iterations" in row["note"] or "stopThr" in row["note"]
        elif row["status"] == "limit":
            assert row["error"] > 1e-5


def test_a_missing_rival_is_a_row_and_a_broken_one_too(tmp_path: Path) -> None:
    (tmp_path / "faiss.py").write_text("raise RuntimeError('made to fail')\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'vector_quantize_pytorch' else find(name, *a)\n"
    )
    done = bench("--quick", "--operator", "vq_assign", "--case", "random", "--no-memory", path=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert lines["vector-quantize-pytorch"].endswith("not installed")
    assert "failed: RuntimeError: made to fail" in lines["faiss IndexFlatL2"]
    assert " 1.00 " in lines["ours"]


def test_only_what_was_asked_for_is_measured() -> None:
    chosen = ("--operator", "vq_assign", "--case", "clustered", "--only", "cdist", "--no-memory")
    done = bench("--quick", *chosen)
    assert "random" not in done.stdout
    assert "torch.cdist" in done.stdout
    assert "bare product" not in done.stdout


def test_help_has_examples_and_a_mistake_its_remedy() -> None:
    help_text = bench("--help").stdout
    assert "tools/bench_kernels --quick" in help_text
    assert "VmHWM" in help_text
    nothing = bench("--quick", "--case", "nowhere")
    assert nothing.returncode != 0
    assert "remedy:" in nothing.stderr


def test_what_only_a_gpu_measures_runs_on_small_shapes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "tools")
    from benchmarks import mmd, sinkhorn, vq_assign

    cpu, half = torch.device("cpu"), torch.bfloat16
    ours = 0
    built = [vq_assign._build(301, 64, 19, half, True, cpu, 0), mmd._build(97, 16, half, True, cpu, 0)]
    for contender in (c for contenders in built for c in contenders if not c.absence(cpu)):
        result = contender.run(None)
        error = contender.error(result)[0] if contender.error else 0.0
        assert error < 0.01, (contender.name, error)
        ours += contender.name == "ours"
    assert ours == 2
    problems = sinkhorn._draw(3, 5, 0.1, 0.1, cpu, 0)
    sinkhorn._at_once(problems, torch.full_like(problems.cost, 0.2), torch.tensor([2, 3, 4]))
    gpu = torch.device("cuda")
    names = [c.name for cases in (vq_assign.cases, sinkhorn.cases, mmd.cases) for c in cases(gpu, False)]
    assert {"1000000x1024x256 bf16 random", "256x256x256 eps 0.01", "16384x16384x4096 bf16 forward"} <= set(
        names
    )
