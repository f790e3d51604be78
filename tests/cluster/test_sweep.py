"""Sweeps: which command lines --array makes, what it refuses, and that each runs as a job of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from signllm import cli
from signllm.cluster.sweep import owned_folder, sweep
from signllm.errors import UsageError
from tests.cluster.slurm import Slurm

TRAIN = ["pretrain", "demo", "--data", "shards"]


def test_every_combination_is_a_job() -> None:
    words = [
        *TRAIN,
        "--training.seed",
        "{seed}",
        "--vq-sign.quantizer.codes={k}",
        "--run",
        "r/{k}-{seed}-{i}",
    ]
    jobs = sweep(["seed=0..1,7", "k=64,128"], words)
    assert [job[-1] for job in jobs] == [
        "r/64-0-0",
        "r/128-0-1",
        "r/64-1-2",
        "r/128-1-3",
        "r/64-7-4",
        "r/128-7-5",
    ]
    assert jobs[3] == (
        *TRAIN,
        *("--training.seed", "1", "--vq-sign.quantizer.codes=128", "--run", "r/128-1-3"),
    )


def test_a_number_counts_jobs() -> None:
    jobs = sweep(["3"], [*TRAIN, "--training.seed", "{i}", "--run", "r/{i}"])
    assert [job[-1] for job in jobs] == ["r/0", "r/1", "r/2"]


@pytest.mark.parametrize("verb", ["finetune", "evaluate"])
@pytest.mark.parametrize("form", [("--run", "runs/{llm}"), ("--run=runs/{llm}",)])
def test_the_name_of_a_model_is_one_folder_s_name(verb: str, form: tuple[str, ...]) -> None:
    """Where it is the whole of the folder's option, it is a folder that the user named."""
    jobs = sweep(["llm=google/flan-t5-xl,/models/7b/"], [verb, "--llm", "{llm}", "--data=d/{llm}", *form])
    assert [job[-1].removeprefix("--run=") for job in jobs] == ["runs/google-flan-t5-xl", "runs/models-7b"]
    assert [job[2:4] for job in jobs] == [
        ("google/flan-t5-xl", "--data=d/google/flan-t5-xl"),
        ("/models/7b/", "--data=d//models/7b/"),
    ]
    named = [word.replace("runs/{llm}", "{llm}") for word in form]
    assert sweep(["llm=runs/a"], [verb, *named])[0][-1].removeprefix("--run=") == "runs/a"


def test_a_value_may_be_several_options_or_none() -> None:
    array = ["variant=,--vq-sign.encoder.no-subtract-video-mean,--training.seed 3 --log 'a b'"]
    jobs = sweep(array, ["pretrain", "{variant}", "--run", "r/{i}"])
    assert [job[1:-2] for job in jobs] == [
        (),
        ("--vq-sign.encoder.no-subtract-video-mean",),
        ("--training.seed", "3", "--log", "a b"),
    ]


@pytest.mark.parametrize(
    ("array", "words", "message"),
    [
        (["0"], ["{i}"], "give 1 or more"),
        (["-2"], ["{i}"], "give 1 or more"),
        (["seed"], ["{seed}"], "NAME=VALUES"),
        (["seed=1", "seed=2"], ["{seed}"], "once each"),
        (["i=1"], ["{i}"], "NAME=VALUES"),
        (["seed=3..1"], ["{seed}"], "write 1..3"),
        (["seed=0..2"], ["--run", "r/{i}"], "no {seed}"),
        (["seed=0..2"], ["--run", "r/{seed}", "{sede}"], "{sede} has no values"),
        (["3"], ["--run", "r"], "have the same command line"),
        (["seed=1,1"], ["--run", "{seed}"], "have the same command line"),
        (["a=1,2"], ["--seed", "{a}", "--run", "r"], "share the folder"),
        (["a=r,r/"], ["--run={a}"], "share the folder"),
        (["a=',x"], ["{a}", "--run", "r{i}"], "cannot be split into options"),
    ],
)
def test_a_mistake_in_a_sweep_is_refused(array: list[str], words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        sweep(array, ["pretrain", *words])


def test_verbs_that_only_read_a_run_may_share_it() -> None:
    jobs = sweep(["split=dev,test"], ["evaluate", "--run", "r", "--split", "{split}"])
    assert len(jobs) == 2
    assert owned_folder(jobs[0]) is None


def launch(*words: str) -> int:
    try:
        return cli.main(["launch", *words])
    except SystemExit as end:
        return int(end.code or 0)


def test_a_dry_run_tells_all_command_lines_and_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    verb = [*TRAIN, "--training.seed", "{seed}", "--run", "r/{seed}"]
    assert launch("a100", "--array", "seed=0..4", "--array-parallelism", "2", "--dry-run", "--", *verb) == 0
    text = capsys.readouterr().out
    lines = re.findall(r"^# signllm (.*)$", text, flags=re.MULTILINE)
    assert lines == [f"pretrain demo --data shards --training.seed {n} --run r/{n}" for n in range(5)]
    assert text.count("#!/bin/bash") == 1
    assert "#SBATCH --array=0-4%2\n" in text
    assert "#SBATCH --job-name=signllm-pretrain\n" in text


def test_every_command_line_is_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb = [*TRAIN, "--vq-sign.quantizer.codes", "{k}", "--run", f"{tmp_path}/{{k}}"]
    assert launch("local", "--logs", f"{tmp_path}/logs", "--array", "k=64,many", "--", *verb) == 2
    assert "many" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def score(tmp_path: Path) -> list[str]:
    """A quick verb: the lines of two files against themselves."""
    for n in range(2):
        (tmp_path / f"{n}.txt").write_text("heute regnet es im norden und im sueden\n" * (n + 1))
    return [
        "score",
        "--hypotheses",
        f"{tmp_path}/{{n}}.txt",
        "--references",
        f"{tmp_path}/{{n}}.txt",
        "--json",
    ]


def test_here_the_jobs_of_a_sweep_run_in_turn(
    score: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--logs", str(tmp_path / "logs"), "--tasks-per-node", "1"]
    assert launch("local", *where, "--array", "n=0..2", "--", *score) == 2
    out, err = capsys.readouterr()
    assert re.findall(r"^(\d): +\"samples\": (\d)", out, flags=re.MULTILINE) == [("0", "1"), ("1", "2")]
    assert "1 of 3 jobs failed; finished ones are kept; the first error: " in err
    assert "2.txt" in err
    assert len(re.findall(r"^job \d+: signllm score", err, flags=re.MULTILINE)) == 3
    assert "Traceback" not in err


def test_slurm_runs_a_sweep_as_one_array(
    slurm: Slurm, score: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    options = ["--logs", str(logs), "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--name", "mine"]
    assert launch("cpu", *options, "--array", "n=0..2", "--array-parallelism", "2", "--", *score) == 0
    message = capsys.readouterr().out
    array = re.findall(r"^job (\d+)_\d: signllm score", message, flags=re.MULTILINE)
    assert len(array) == 3
    assert len(set(array)) == 1
    assert f"cancel: scancel {array[0]}\n" in message
    assert slurm.field(f"{array[0]}_0", "ArrayTaskThrottle") == "2"
    states = slurm.wait()
    assert [states[f"{array[0]}_{n}"] for n in range(3)] == ["COMPLETED", "COMPLETED", "FAILED"], slurm
    assert '"samples": 2' in (logs / f"{array[0]}_1_0_log.out").read_text()
    assert launch("status", array[0], "--logs", str(logs), "--follow") == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^\d+_(\d)  mine  (\w+)", shown, flags=re.MULTILINE) == [
        ("0", "COMPLETED"),
        ("1", "COMPLETED"),
        ("2", "FAILED"),
    ]
    assert "error    cannot read the file" in shown
