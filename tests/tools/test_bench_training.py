"""The benchmark of a training step: both sides train alike or are not compared, and it says what it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tests import warm

CHECKOUT = Path(__file__).parents[2]
PATH = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "tools")))
SHORT = ("--size", "tiny", "--device", "cpu", "--rounds", "2", "--steps", "2")
ABSENT = ("webdataset", "submitit", "av", "tyro", "ot", "geomloss", "faiss")
"""Not on the GPU machine: the runs that measure do without them."""
LLAMA_7B = 6_738_415_616
"""Parameters of LLaMA-7B (arXiv 2302.13971 calls it 6.7B)."""


def python(*arguments: str, hidden: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python as a fork, or as an interpreter from which the packages are hidden that may be absent."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": PATH}
    if not hidden:
        command = [warm.python(), *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    with TemporaryDirectory() as folder:
        code = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
        (Path(folder) / "sitecustomize.py").write_text(code)
        variables["PYTHONPATH"] = os.pathsep.join((folder, PATH))
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def bench(*arguments: str, hidden: bool = False) -> subprocess.CompletedProcess[str]:
    return python(str(CHECKOUT / "tools" / "bench_training"), *arguments, hidden=hidden)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a short run under ZeRO-3 prints and writes."""
    file = tmp_path_factory.mktemp("bench") / "new" / "bench.json"
    done = bench(*SHORT, "--deepspeed", "zero3", "--profile", "--json", str(file), hidden=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads(file.read_text())


def test_both_sides_are_timed_in_turns_on_the_same_training(measured: tuple[str, dict[str, Any]]) -> None:
    _, record = measured
    assert set(record["sides"]) == {"ours", "plain"}
    for side in record["sides"].values():
        assert len(side["rounds_s"]) == len(side["rounds_cpu_s"]) == 2
        assert 0 < side["best_s"] <= side["median_s"]
        assert side["samples_per_s"] == pytest.approx(record["work"]["videos"] / side["best_s"])
        assert side["mfu"] is side["peak_gib"] is None, "a CPU has no peak here"
    best = [record["sides"][name]["best_s"] for name in ("plain", "ours")]
    assert record["ratio_best"] == pytest.approx(best[0] / best[1])
    assert record["loss_apart"] < 1e-4
    assert record["loss_first"] != record["loss_last"]


def test_a_step_costs_four_operations_per_frozen_weight_and_token(
    measured: tuple[str, dict[str, Any]],
) -> None:
    _, record = measured
    width, inner, layers, vocabulary = 32, 64, 2, 128
    weights = layers * (4 * width**2 + 3 * width * inner) + vocabulary * width
    frozen = 4 * weights * record["tokens_per_step"]
    assert frozen < record["operations_per_step"], "attention and projector come on top"
    projector = 6 * record["trained_parameters"] * 2 * record["work"]["videos"] * 7
    assert record["operations_per_step"] < 1.5 * frozen + projector


def test_the_table_states_the_measurements_and_whether_they_reach_the_target(
    measured: tuple[str, dict[str, Any]],
) -> None:
    text, record = measured
    for expected in ("samples/s", "TFLOP/s", "MFU", "peak GiB", "at least 0.95", "the process used"):
        assert expected in text
    assert f"ratio: {record['ratio_best']:.3f} (best), {record['ratio_median']:.3f} (median)" in text
    assert "fp32, zero3" in text
    assert "round 0: warm-up" in text
    assert "profile of ours" in text
    assert "one_step" in text


def test_bf16_video_and_recomputation_train_alike_too() -> None:
    options = ("--precision", "bf16", "--signs", "video", "--checkpointing", "--spread", "0.3")
    done = bench(*SHORT, *options, "--deepspeed", "zero2", hidden=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bf16, zero2" in done.stdout


def test_sides_that_train_differently_are_not_compared() -> None:
    code = f"""
import sys
from torch.nn import functional
from benchmarks import training, training_sides
taken = training_sides.PlainLoop.one_step
def one_step(self):
    assert functional.linear is training_sides.TORCH_LINEAR
    return taken(self)
training_sides.PlainLoop.one_step = one_step
training_sides.PlainLoop.update = lambda self: self.optimizer.zero_grad()
sys.argv = ["bench_training", *{SHORT!r}, "--deepspeed", "zero3"]
training.main()
"""
    done = python("-c", code)
    assert done.returncode == 1, done.stdout
    assert "do not train alike" in done.stderr
    assert "step 2 of 6" in done.stderr, done.stderr[-2000:]
    assert "ratio:" not in done.stdout


def test_a_loss_that_is_no_number_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "tools")
    from benchmarks.training import parted
    from benchmarks.training_sides import Side

    difference = parted({"ours": Side(losses=[1.0, nan]), "plain": Side(losses=[1.0, nan])}, 0.1)
    assert str(difference).startswith("step 2 of 2")
    assert parted({"ours": Side(losses=[1.0, 2.0]), "plain": Side(losses=[1.05, 2.0])}, 0.1) is None


def test_the_largest_size_is_llama_7b_frozen_in_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "tools")
    from benchmarks.training_model import SIZES, configured, write_folder
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = write_folder(tmp_path, SIZES["7b"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert sum(p.numel() for p in model.parameters()) == LLAMA_7B
    config = configured(SIZES["7b"], precision=None, checkpointing=None)
    model_of = config.sign_llm.language_model
    assert (model_of.dtype, model_of.attention) == ("bf16", "sdpa")
    assert (config.training.precision, config.training.deepspeed) == ("bf16", "zero3")


def test_help_has_examples_and_a_mistake_its_remedy() -> None:
    help_text = bench("--help").stdout
    assert "--size 7b --device cuda" in help_text
    assert "4 per frozen LLM weight and token" in help_text
    wrong = bench("--videos", "0")
    assert wrong.returncode == 2
    assert "--videos is 0; it must be at least 1" in wrong.stderr
    missing = bench(*SHORT, "--deepspeed", "zero9")
    assert missing.returncode == 1
    assert "zero9" in missing.stderr
    assert "Traceback" not in missing.stderr
    if not torch.cuda.is_available():
        assert "remedy: --device cpu" in bench("--device", "cuda").stderr
