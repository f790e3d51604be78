"""Jobs: the recorded sbatch text, a rank's environment, and real tasks through submitit's local executor."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from submitit import LocalJob

from signllm import cli
from signllm.cluster.launch import _local_parameters, job_name, launch, sbatch_text, wait_for_job
from signllm.cluster.local_jobs import run_local_jobs
from signllm.cluster.profile import Profile, load_profile
from signllm.cluster.rank import rank_environment, rendezvous_port
from signllm.cluster.site_environment import RANK_VARIABLES
from signllm.errors import RunFailedError, UsageError

VERB = ["pretrain", "demo", "--data", "shards", "--run", "runs/X"]
SBATCH = """\
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --error=/logs/%j_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=signllm-pretrain-X
#SBATCH --mem=480GB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/logs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
export OMP_NUM_THREADS=8
export NCCL_DEBUG=WARN
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /logs/%j_%t_log.out --error /logs/%j_%t_log.err --kill-on-bad-exit=1 \
--export=ALL --cpus-per-task=8 \
sh -c 'trap '"'"''"'"' USR2 TERM; exec "$0" "$@"' PYTHON -u -m submitit.core._submit /logs
"""


def a100() -> Profile:
    from dataclasses import replace

    return replace(load_profile("a100"), nodes=2, partition="gpu", setup=("module load cuda",))


def test_the_sbatch_text_is_the_recorded_one() -> None:
    text = sbatch_text(a100(), VERB, Path("/logs"))
    assert re.sub(r"\S*python\S*", "PYTHON", text) == SBATCH


def test_dry_run_prints_and_submits_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verb = ["score", "--hypotheses", "h", "--references", "r"]
    assert cli.main(["launch", "a100", "--nodes", "4", "--partition", "long", "--dry-run", "--", *verb]) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --nodes=4\n" in text
    assert "#SBATCH --partition=long\n" in text
    assert "submitit.core._submit" in text
    assert not list(tmp_path.iterdir())


def test_the_verb_is_checked_before_it_is_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of:
        cli.main(["launch", "a100", "--dry-run", "--", *VERB, "--training.epoch", "3"])
    assert exit_of.value.code == 2
    assert "--training.epochs" in capsys.readouterr().err


def test_without_slurm_the_error_states_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="has no Slurm"):
        launch(a100(), VERB, run=print, logs=tmp_path)


def test_a_job_is_named_after_its_verb_and_run() -> None:
    assert job_name(VERB) == "signllm-pretrain-X"
    assert job_name(["score", "--hypotheses", "h"]) == "signllm-score"
    assert job_name(VERB, [*VERB[:-1], "runs/Y"]) == "signllm-pretrain"
    assert "#SBATCH --job-name=mine\n" in sbatch_text(Profile(name="mine"), VERB, Path("/logs"))


def test_a_rank_takes_its_place_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {
        "SLURM_JOB_ID": "77",
        "SLURM_NTASKS": "16",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_PROCID": "11",
        "SLURM_LOCALID": "3",
        "SLURM_JOB_NODELIST": "n[0-1]",
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
        "SUBMITIT_EXECUTOR": "slurm",
        "CUDA_VISIBLE_DEVICES": "GPU-abc",
        "RANK": "99",
    }
    for name in RANK_VARIABLES:
        monkeypatch.setenv(name, "stale")
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT")
    rank_environment()
    printed = {name: os.environ[name] for name in RANK_VARIABLES}
    port = int(printed.pop("MASTER_PORT"))
    assert printed == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "10.0.0.7",
    }
    assert 1024 < port < 65536
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    rank_environment()
    assert int(os.environ["MASTER_PORT"]) == port


def test_jobs_that_share_a_node_meet_at_ports_of_their_own() -> None:
    ports = [rendezvous_port(str(job)) for job in range(99_000, 99_000 + 10_000)]
    assert len(set(ports)) == len(ports)
    assert min(ports) >= 20_000
    assert max(ports) < 32_768, "Linux gives those above to anybody"


def test_a_port_in_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "77")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(RunFailedError, match="cannot use port"):
            rank_environment()


def _sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a Slurm on the path that does what ``script`` says when a job is submitted."""
    for name, text in (("srun", "exit 0"), ("sbatch", script)):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_job_that_slurm_refuses_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sbatch(tmp_path, monkeypatch, "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(UsageError, match="invalid partition"):
        launch(a100(), VERB, run=print, logs=tmp_path / "logs")


def test_the_site_is_kept_and_an_outer_job_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CONF", "SLURM_JOB_ID", "RANK"):
        monkeypatch.setenv(name, "7")
    _sbatch(tmp_path, monkeypatch, f"env > {tmp_path}/env; echo Submitted batch job 12")
    job = launch(a100(), VERB, run=print, logs=tmp_path / "logs")
    assert job.job_id == "12"
    handed_on = (tmp_path / "env").read_text()
    assert "SLURM_CONF=7" in handed_on
    assert "SLURM_JOB_ID" not in handed_on
    assert "RANK" not in handed_on


LOCAL = Profile(executor="local", tasks_per_node=2, time=5, environment={"SIGNLLM_TEST": "set here"})


def _job(run: object, arguments: list[str], logs: Path) -> LocalJob[None]:
    job = launch(LOCAL, arguments, run=run, logs=logs)  # type: ignore[arg-type]
    assert isinstance(job, LocalJob)
    return job


def test_a_local_job_runs_on_two_ranks_that_meet(tmp_path: Path) -> None:
    def run(arguments: list[str]) -> None:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        print(*arguments, os.environ["RANK"], int(total), os.environ["SIGNLLM_TEST"])
        dist.destroy_process_group()

    assert wait_for_job(_job(run, ["a", "verb"], tmp_path)) == "a verb 0 2 set here\n"


def test_a_verb_runs_as_a_local_job_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences, logs = tmp_path / "s.txt", tmp_path / "logs"
    sentences.write_text("heute regnet es im norden\nmorgen scheint die sonne im ganzen land\n")
    verb = ["score", "--hypotheses", str(sentences), "--references", str(sentences)]
    assert cli.main(["launch", "local", "--logs", str(logs), "--", *verb]) == 0
    out, printed = capsys.readouterr()
    table = out.splitlines()
    assert [line for line in table if line.startswith("bleu4 ")] == [table[5]]  # of two ranks, one speaks
    number = re.match(r"job (\d+): signllm score ", printed)[1]  # type: ignore[index]
    assert f"log: {logs}/{number}_0_log.err" in printed
    assert f"follow: signllm launch status {number} --follow --logs {logs}" in printed
    assert "Traceback" not in printed
    assert cli.main(["launch", "local", "--logs", str(logs), "--", *verb[:3], "--references", "none"]) == 2
    assert capsys.readouterr().err.count("cannot read the file") == 1


def test_a_profile_s_lines_keep_the_shell_that_a_job_is_numbered_after() -> None:
    """Where sh is bash, it would give its number away to the last command of its line."""
    lines = _local_parameters(Profile(executor="local", setup=("export A=1",)), None)["setup"]
    parent = [*lines, f"{sys.executable} -c 'import os; print(os.getppid())'"]
    shell = subprocess.Popen(["bash", "-c", " && ".join(parent)], stdout=subprocess.PIPE, text=True)
    assert shell.communicate()[0].strip() == str(shell.pid)


def test_what_rank_0_says_is_shown_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A local job that fails: progress on standard error, results, its failure once, no traceback."""

    def run(arguments: list[str]) -> None:
        import sys

        for step in range(3):
            print(f"pretrain: {step}/3 steps", file=sys.stderr, flush=True)
        print("a result of rank", os.environ["RANK"])
        raise RunFailedError("the loss is no number\n  remedy: a lower learning rate")

    with pytest.raises(RunFailedError, match="a lower learning rate"):
        run_local_jobs([lambda: _job(run, ["x"], tmp_path)], at_once=1)
    out, err = capsys.readouterr()
    assert out == "a result of rank 0\n"
    assert err == "".join(f"pretrain: {step}/3 steps\n" for step in range(3))


def test_a_preempted_job_is_queued_again(tmp_path: Path) -> None:
    def run(arguments: list[str]) -> None:
        from signllm.distributed.local_ranks import StoppedEarlyError

        mark = Path(arguments[0]) / f"stopped-{os.environ['RANK']}"
        if not mark.exists():
            mark.touch()
            raise StoppedEarlyError("saved after step 3")
        print("continued")

    assert wait_for_job(_job(run, [str(tmp_path)], tmp_path / "logs")) == "continued\n"


@pytest.mark.parametrize(
    ("kind", "printed"),
    [(UsageError, "no such shards"), (RunFailedError, "no such shards"), (KeyError, "KeyError")],
)
def test_a_failing_rank_is_reported(kind: type[Exception], printed: str, tmp_path: Path) -> None:
    def run(arguments: list[str]) -> None:
        raise kind("no such shards")

    expected = UsageError if kind is UsageError else RunFailedError
    with pytest.raises(expected, match=printed):
        wait_for_job(_job(run, ["x"], tmp_path))
