"""Without submitit: ``slurm/train.sbatch`` on a real Slurm, torchrun, and ``--ranks``, asked to leave."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from signllm.package_files import package_folder
from signllm.training.checkpoint import load_weights
from tests import warm
from tests.cluster.slurm import Slurm, outside_of_jobs, until
from tests.cluster.test_preemption import lines

ROOT = Path(__file__).resolve().parents[2]
TINY = "tests.cluster.tiny_signllm"
STEPS = ["--training.steps", "40"]


def pretrain(composed: Path, run: Path) -> list[str]:
    return ["pretrain", "tiny", "--data", str(composed / "shards"), "--run", str(run), *STEPS]


def environment() -> dict[str, str]:
    known = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "LOCAL_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    kept = {name: value for name, value in outside_of_jobs().items() if name not in known}
    return kept | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def straight(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that torchrun started and nobody stopped."""
    run = tmp_path_factory.mktemp("by-hand") / "straight"
    torchrun = [warm.python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Without "--" torchrun takes the verb's --run for an abbreviation of its own --run-path.
    command = [*torchrun, "-m", "--", TINY, *pretrain(composed, run)]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, timeout=300)
    return run


def assert_equal(run: Path, other: Path) -> None:
    weights, expected = load_weights(run), load_weights(other)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def rank_0(slurm: Slurm) -> int | None:
    """Return the process of the first rank, once it is Python's."""
    for process in slurm.processes():
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"tests.cluster.tiny_signllm" in command and b"python" in command[0] and b"RANK=0" in variables:
            return process
    return None


def test_train_sbatch_is_preempted_and_resumes(
    slurm: Slurm, composed: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "bin" / "signllm"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {warm.python()} -m {TINY} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    for name, value in environment().items():
        if name != "PATH":
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    run, output = tmp_path / "run", tmp_path / "out"
    asked = ["--nodes", "2", "--ntasks-per-node", "1", "--gpus-per-node", "0", "--cpus-per-task", "1"]
    script = str(package_folder("slurm") / "train.sbatch")
    printed = slurm.command("sbatch", *asked, "--output", str(output), script, *pretrain(composed, run))
    job = printed.split()[-1]
    until(lambda: lines(run / "log.jsonl") >= 2, slurm, every_s=0.005)
    first = rank_0(slurm)
    assert first is not None
    os.kill(warm.fork_of(first), signal.SIGSTOP)  # Slurm continues the job before it warns it
    steps = lines(run / "log.jsonl")
    slurm.preempt()
    assert slurm.wait()[job] == "COMPLETED", f"{slurm}\n{output.read_text()}"
    assert slurm.field(job, "Restarts") == "1"
    assert 2 <= steps < lines(run / "log.jsonl")
    assert_equal(run, straight)


def test_ranks_of_a_launcher_save_and_leave_when_it_is_asked(
    composed: Path, straight: Path, tmp_path: Path
) -> None:
    number = signal.SIGUSR2  # torch itself passes SIGTERM on: tests/distributed/test_local_ranks.py
    run = tmp_path / "run"
    command = [warm.python(), "-m", TINY, *pretrain(composed, run)]
    # `--ranks` starts `-m signllm`, which does not know the recipe: the launcher is the same.
    code = (
        "import sys; from signllm.distributed import local_ranks as l; describe_error = l.describe_error\n"
        "try: l._launch(sys.argv[1:], 2)\n"
        "except Exception as e: print(*describe_error(e), file=sys.stderr); sys.exit(describe_error(e)[1])"
    )
    launcher = subprocess.Popen(
        [warm.python(), "-c", code, *command], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    until(lambda: lines(run / "log.jsonl") >= 2, "the first steps", every_s=0.005)
    launcher.send_signal(number)
    _, printed = launcher.communicate(timeout=120)
    assert launcher.returncode == 1
    assert f"stopped by {number.name}; the same command continues a run" in printed
    assert "Traceback" not in printed
    assert 2 <= lines(run / "log.jsonl") < 40
    done = warm.run_ranks(TINY, *pretrain(composed, run), ranks=2)
    assert done.codes == [0, 0], done.stderr
    assert_equal(run, straight)
