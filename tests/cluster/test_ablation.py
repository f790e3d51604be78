"""Ablations as jobs of one Slurm array: what they share is made by one, the others wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.cluster.launch import launch_array
from signllm.cluster.profile import Profile
from signllm.experiments.ablation_table import read_ablation_table
from signllm.training.training_log import read_log
from tests.cluster.slurm import Slurm
from tests.cluster.training import ablate_on_rank

PROFILE = Profile(
    tasks_per_node=2, partition="low", environment={"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
)


@pytest.mark.usefixtures("forked_ranks")
def test_jobs_that_share_a_stage_make_it_once(slurm: Slurm, composed: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "ablations", ("full", "characters")
    commands = [
        [str(composed), "--out", str(out), "--only", name, "--seeds", "0", "--split", "dev"] for name in names
    ]
    jobs = launch_array(PROFILE, commands, run=ablate_on_rank, logs=tmp_path / "logs")
    states = slurm.wait()
    assert [states[job.job_id] for job in jobs] == ["COMPLETED"] * 2, f"{slurm}\n{jobs[0].stderr()}"
    logs = [job.stdout() + job.stderr() for job in jobs]
    assert sum("waiting for another job" in log for log in logs) == 1, logs
    steps = [line["step"] for line in read_log(out / "full" / "seed-0" / "pretrain") if "loss" in line]
    assert steps == [1, 2, 3, 4]
    assert not (out / "characters" / "seed-0" / "pretrain").exists()
    assert [row.seeds for row in read_ablation_table(out, "dev").rows] == [(0,), (0,)]
    assert (out / "ablations.html").is_file()
