"""Stage 3 under ZeRO-3 on the two nodes of a real Slurm, preempted by a job of a higher partition."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from signllm.cluster.launch import launch, wait
from signllm.cluster.profile import Profile
from signllm.training.checkpoint import load_weights
from tests.cluster.slurm import Slurm, until
from tests.cluster.training import finetune_on_rank

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
ON_SLURM = Profile(nodes=2, partition="low", environment=ENVIRONMENT)
HERE = Profile(executor="local", tasks_per_node=2, environment=ENVIRONMENT)


def lines(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_preempted_run_ends_with_the_weights_of_one_that_was_not(
    slurm: Slurm, composed: Path, tmp_path: Path
) -> None:
    """The first rank is held after some steps of the joint phase, until Slurm continues and warns it."""
    preempted, straight = tmp_path / "preempted", tmp_path / "straight"
    job = launch(ON_SLURM, [str(composed), str(preempted)], run=finetune_on_rank, logs=tmp_path / "logs")
    until(lambda: lines(preempted / "log.jsonl") >= 3, slurm, every_s=0.005)
    [first] = slurm.ranks(SLURM_PROCID="0")
    os.kill(first, signal.SIGSTOP)  # Slurm sends SIGCONT before its warning
    steps = lines(preempted / "log.jsonl")
    slurm.preempt()
    states = slurm.wait()
    assert states[job.job_id] == "COMPLETED", f"{slurm}\n{job.stderr()}"
    assert slurm.field(job.job_id, "Restarts") == "1"
    assert 3 <= steps < lines(preempted / "log.jsonl")
    wait(launch(HERE, [str(composed), str(straight)], run=finetune_on_rank, logs=tmp_path / "logs"))
    resumed, expected = load_weights(preempted), load_weights(straight)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())
