"""What sites differ in, on a real Slurm: cores of a rank, queueing again, arrays, settings of the shell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from signllm import cli
from signllm.cluster import launch as launching
from signllm.cluster.launch import launch, sbatch_text, split_into_arrays
from signllm.cluster.profile import Profile
from signllm.cluster.sbatch import parse_job_id
from signllm.cluster.shard_jobs import ShardJobs
from signllm.cluster.shard_jobs import submit as submit_shard
from signllm.cluster.site_environment import site_environment
from signllm.cluster.slurm_jobs import SubmissionLimits, slurm_states, submission_limits
from signllm.cluster.snapshot import planned_snapshot
from signllm.cluster.status import job_statuses
from signllm.errors import UsageError
from signllm.package_files import package_folder
from tests.cluster.slurm import ARRAY_SIZE, Slurm, until
from tests.cluster.test_launch import VERB, _sbatch
from tests.cluster.test_status import programs
from tests.cluster.training import print_place, wait_for_warning

TWO_NODES = Profile(nodes=2, environment={"OMP_NUM_THREADS": "1"})


def printed(logs: Path, job: str, rank: int = 0) -> dict[str, Any]:
    """Return what :func:`print_place` printed on a rank."""
    lines = (logs / f"{job}_{rank}_log.out").read_text().splitlines()
    return dict(json.loads(next(line for line in lines if line.startswith("{"))))


# Keys and options of the file.


def test_no_key_is_asked_for_unless_the_user_names_one() -> None:
    assert "wckey" not in sbatch_text(TWO_NODES, VERB, Path("/logs"))
    assert "wckey" not in sbatch_text(replace(TWO_NODES, additional={"wckey": ""}), VERB, Path("/logs"))
    own_key = replace(TWO_NODES, additional={"wckey": "signs"})
    assert "#SBATCH --wckey=signs\n" in sbatch_text(own_key, VERB, Path("/logs"))


@pytest.mark.parametrize(
    "option",
    [
        "requeue",
        "signal",
        "open-mode",
        "nodes",
        "time",
        "output",
        "error",
        "mem",
        "cpus-per-task",
        "job_name",
    ],
)
def test_an_empty_value_drops_an_option(option: str) -> None:
    name = option.replace("_", "-")
    profile = replace(TWO_NODES, mem_gb=1)
    assert f"#SBATCH --{name}" in sbatch_text(profile, VERB, Path("/logs"))
    text = sbatch_text(replace(profile, additional={option: ""}), VERB, Path("/logs"), jobs=2)
    assert f"#SBATCH --{name}" not in text
    assert ("--cpus-per-task" in text) == (name != "cpus-per-task"), "srun is asked for it as well"


def test_a_job_that_must_not_be_queued_again_says_so() -> None:
    text = sbatch_text(replace(TWO_NODES, additional={"no-requeue": ""}), VERB, Path("/logs"))
    assert "#SBATCH --no-requeue\n" in text
    assert "#SBATCH --requeue" not in text


def test_an_array_cannot_be_dropped() -> None:
    with pytest.raises(UsageError, match="--array"):
        replace(TWO_NODES, additional={"array": ""})


def test_gpus_may_be_asked_for_by_another_option() -> None:
    profile = Profile(gpus=4, additional={"gpus-per-node": "", "gres": "gpu:a100:4"})
    text = sbatch_text(profile, VERB, Path("/logs"))
    assert "#SBATCH --gres=gpu:a100:4\n" in text
    assert "#SBATCH --ntasks-per-node=4\n" in text
    assert "gpus-per-node" not in text


# Settings of the shell that launches.

SETTINGS = {
    "SBATCH_ACCOUNT": "sign",
    "SBATCH_QOS": "long",
    "SBATCH_RESERVATION": "course",
    "SLURM_CLUSTERS": "big",
    "SLURM_CONF": "/etc/site.conf",
    "SLURM_JWT": "token",
    "SALLOC_PARTITION": "debug",
    "SRUN_CONTAINER": "/image",
    "SLURM_CPU_BIND": "cores",
}
OF_AN_OUTER_JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOBID": "7",
    "SLURM_JOB_PARTITION": "debug",
    "SLURM_NTASKS": "3",
    "SLURM_NPROCS": "3",
    "SLURM_CPUS_PER_TASK": "9",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_MEM_PER_NODE": "100",
    "SLURM_TRES_PER_TASK": "cpu=9",
    "SLURM_TASKS_PER_NODE": "3",
    "SLURM_NODELIST": "n9",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURMD_NODENAME": "n9",
    "SLURM_SUBMIT_DIR": "/",
    "SUBMITIT_EXECUTOR": "slurm",
    "RANK": "3",
    "MASTER_ADDR": "n9",
}


def test_settings_of_the_shell_are_handed_on_and_an_outer_job_is_not() -> None:
    handed_on = site_environment("", SETTINGS | OF_AN_OUTER_JOB | {"HOME": "/h"})
    assert set(handed_on.variables) == {"HOME", *SETTINGS} - {"SLURM_CPU_BIND"}, "srun sets that one in a job"
    outside = site_environment("", SETTINGS | {"SLURM_NTASKS": "3", "CUDA_VISIBLE_DEVICES": "1"})
    assert set(outside.variables) == {*SETTINGS, "CUDA_VISIBLE_DEVICES"}


@pytest.mark.parametrize(
    ("option", "variable"),
    [
        ("partition=a", "SBATCH_PARTITION"),
        ("time=5", "SBATCH_TIMELIMIT"),
        ("mem=5GB", "SBATCH_MEM_PER_CPU"),
        ("gpus-per-node=5", "SBATCH_GPUS"),
        ("requeue", "SBATCH_NO_REQUEUE"),
        ("clusters=a", "SLURM_CLUSTERS"),
        ("nodes=1", "SBATCH_ARRAY_INX"),
    ],
)
def test_an_option_of_the_file_replaces_the_setting(option: str, variable: str) -> None:
    """To sbatch itself, a variable of the environment counts more than a line of the file."""
    handed_on = site_environment(f"#!/bin/bash\n#SBATCH --{option}\n", {variable: "x", "SBATCH_QOS": "q"})
    assert handed_on.variables == {"SBATCH_QOS": "q"}
    described = "\n".join(handed_on.describe())
    assert variable in described
    assert "SBATCH_QOS" in described


def test_a_dry_run_names_the_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "sign")
    verb = ["score", "--hypotheses", "h", "--references", "r"]
    assert cli.main(["launch", "cpu", "--dry-run", "--", *verb]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "SBATCH_ACCOUNT" in line]
    assert len(lines) == 1
    assert lines[0].startswith("# "), "a comment of the file"


def test_slurm_takes_the_settings_of_the_shell_and_the_options_of_the_profile(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From inside another job, whose size is another one; ranks start though jobs get no environment."""
    outer = {name: value for name, value in OF_AN_OUTER_JOB.items() if name != "SUBMITIT_EXECUTOR"}
    site = {
        "SBATCH_PARTITION": "bound",
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_EXPORT": "NONE",
    }
    for name, value in (outer | site).items():
        monkeypatch.setenv(name, value)
    root = str(Path(__file__).resolve().parents[2])
    profile = replace(TWO_NODES, time=7, environment={"MINE": "set", "PYTHONPATH": root})
    before = dict(os.environ)
    job = launch(profile, ["MINE", "PYTHONPATH"], run=print_place, logs=tmp_path)
    assert dict(os.environ) == before
    assert slurm.wait()[job.job_id] == "COMPLETED", f"{slurm}\n{job.stderr()}"
    fields = {name: slurm.field(job.job_id, name) for name in ("Partition", "TimeLimit", "NumNodes")}
    assert fields == {"Partition": "bound", "TimeLimit": "00:07:00", "NumNodes": "2"}
    ranks = [printed(tmp_path, job.job_id, rank) for rank in range(2)]
    assert [(rank["RANK"], rank["WORLD_SIZE"], rank["MINE"]) for rank in ranks] == [
        ("0", "2", "set"),
        ("1", "2", "set"),
    ]


# Cores.


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this machine has one core")
def test_a_rank_gets_all_of_its_cores(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tasks are bound to cores, of which srun by itself asks for one (Slurm 22.05 to 23.02)."""
    profile = replace(TWO_NODES, nodes=1, partition="bound", cpus_per_task=2)
    job = launch(profile, [], run=print_place, logs=tmp_path)
    shim = tmp_path / "bin" / "signllm"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\nexec python3 -c 'import os; print(len(os.sched_getaffinity(0)))'\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    script, output = str(package_folder("slurm") / "train.sbatch"), tmp_path / "by-hand.out"
    asked = ["--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=2", f"--output={output}"]
    assert slurm.command("sbatch", "--partition=bound", *asked, script)
    slurm.wait()
    assert len(printed(tmp_path, job.job_id)["cores"]) == 2, slurm
    assert output.read_text().strip() == "2", slurm


# Queueing again.


@pytest.mark.parametrize("kind", ["forbidden", "no scontrol", "no scontrol, before the verb listens"])
def test_a_job_that_cannot_be_queued_again_says_what_to_do(
    kind: str, slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, logs = TWO_NODES, tmp_path / "logs"
    if kind == "forbidden":
        profile = replace(profile, additional={"no-requeue": ""})
    else:
        (tmp_path / "bin").mkdir()
        for name in ("srun", "sh", "env"):
            (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
        profile = replace(profile, environment={"PATH": str(tmp_path / "bin")})
    listens = "" if "before" in kind else "yes"
    job = launch(profile, [str(tmp_path), listens], run=wait_for_warning, logs=logs)
    until(lambda: len(list(tmp_path.glob("waiting-?"))) == 2, slurm)
    slurm.command("scancel", "--signal=USR2", job.job_id)
    assert slurm.wait()[job.job_id] == "FAILED", slurm
    log = (logs / f"{job.job_id}_0_log.err").read_text()
    assert "give the same launch command again" in log
    assert "Traceback" not in log
    assert "internal error of signllm" not in log
    [status] = job_statuses(logs)
    assert (status.state, status.attempts) == ("FAILED", 1)
    assert ("saved after step 7" if listens else "what is done is kept") in str(status.error)
    assert "give the same launch command again" in str(status.error)
    assert ("no scontrol" if kind != "forbidden" else "scontrol requeue") in str(status.error)
    assert cli.main(["launch", "status", "--logs", str(logs)]) == 0
    assert str(status.error) in capsys.readouterr().out


def test_the_script_for_hands_says_that_it_is_not_queued_again(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "bin" / "signllm"
    shim.parent.mkdir()
    shim.write_text(f"#!/bin/sh\ntrap 'exit 1' USR2\ntouch {tmp_path}/waiting\nwhile :; do sleep 0.1; done\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    asked = ["--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--no-requeue"]
    script, output = str(package_folder("slurm") / "train.sbatch"), tmp_path / "out"
    job = slurm.command("sbatch", *asked, "--output", str(output), script).split()[-1]
    until((tmp_path / "waiting").exists, slurm)
    slurm.command("scancel", "--batch", "--signal=USR2", job)
    assert slurm.wait()[job] == "FAILED", slurm
    assert slurm.field(job, "ExitCode") == "1:0"
    assert "give the same sbatch command again" in output.read_text()


# Arrays.


def test_a_sweep_is_cut_where_the_site_s_arrays_end() -> None:
    jobs = [f"{n}" for n in range(2000)]
    parts = split_into_arrays(jobs, SubmissionLimits(array_size=1001))
    assert [len(part) for part in parts] == [1001, 999]
    assert [job for part in parts for job in part] == jobs
    assert [len(part) for part in split_into_arrays(jobs[:3], SubmissionLimits(array_size=0))] == [1, 1, 1]
    assert split_into_arrays(jobs, SubmissionLimits()) == [jobs]


def test_the_limits_of_a_site_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = "printf 'MaxArraySize            = 4000001\nMaxJobCount             = 50000\n%s\n' "
    scheduler = "'SchedulerParameters     = bf_continue,max_array_tasks=1000,defer'"
    programs(tmp_path / "bin", monkeypatch, scontrol=config + scheduler, sacctmgr="printf '500\n200\n'")
    assert submission_limits() == SubmissionLimits(array_size=1000, jobs=50000, submitted=500)
    with pytest.raises(UsageError, match=r"501 jobs.* 500 \(MaxSubmitJobs\)"):
        submission_limits().refuse_more(501)
    submission_limits().refuse_more(500)
    (tmp_path / "bin" / "sacctmgr").write_text("#!/bin/sh\nprintf '500\\n\\n'\n")
    assert submission_limits().submitted is None, "one association has no limit"
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    assert submission_limits() == SubmissionLimits()


def test_a_sweep_above_the_site_s_limit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launching, "submission_limits", lambda: SubmissionLimits(jobs=3))
    programs(tmp_path / "bin", monkeypatch, srun="exit 1", sbatch=f"touch {tmp_path}/submitted")
    verb = ["score", "--hypotheses", "{i}", "--references", "r"]
    assert cli.main(["launch", "cpu", "--array", "4", "--", *verb]) == 2
    assert "MaxJobCount" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_sweep_above_the_size_of_an_array_is_several(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``--array-parallelism`` one after the other, for no more jobs may run at a time."""
    logs, count = tmp_path / "logs", ARRAY_SIZE + 2
    for n in range(count):
        (tmp_path / f"{n}.txt").write_text("heute regnet es im norden und im sueden\n" * (n + 1))
    text = f"{tmp_path}/{{n}}.txt"
    launched = ["launch", "cpu", "--logs", str(logs), "--cpus-per-task", "1", "--mem-gb", "1"]
    launched += ["--array", f"n=0..{count - 1}"]
    verb = ["--", "score", "--hypotheses", text, "--references", text]
    for limit in ([], ["--array-parallelism", "2"]):
        assert cli.main([*launched, *limit, "--dry-run", *verb]) == 0
        files = capsys.readouterr().out.split("#!/bin/bash")[1:]
        assert [re.findall(r"--array=\S+", file) for file in files] == [
            [f"--array=0-{ARRAY_SIZE - 1}%{2 if limit else ARRAY_SIZE}"],
            ["--array=0-1%2"],
        ]
        assert ["--dependency=afterany:" in file for file in files] == [False, bool(limit)]
    assert cli.main([*launched, "--array-parallelism", "2", *verb]) == 0
    assert set(slurm.wait().values()) <= {"COMPLETED", "CANCELLED", "FAILED"}
    statuses = job_statuses(logs, every=True)
    assert [status.command[2] for status in statuses] == [f"{tmp_path}/{n}.txt" for n in range(count)]
    assert {status.state for status in statuses} == {"COMPLETED"}, slurm
    assert len({status.id.partition("_")[0] for status in statuses}) == 2


def test_where_a_later_array_is_refused_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "submission_limits", lambda: SubmissionLimits(array_size=2))
    refusal = "echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1"
    script = (
        f"if [ -e {tmp_path}/once ]; then {refusal}; fi; touch {tmp_path}/once; echo Submitted batch job 12"
    )
    _sbatch(tmp_path, monkeypatch, script)
    (tmp_path / "scancel").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/cancelled\n")
    (tmp_path / "scancel").chmod(0o755)
    with pytest.raises(UsageError, match="fewer values") as refused:
        launching.launch_array(TWO_NODES, [[str(n)] for n in range(4)], run=print, logs=tmp_path / "logs")
    assert "AssocMaxSubmitJobLimit" in str(refused.value)
    assert (tmp_path / "cancelled").read_text().split() == ["12_0", "12_1"]
    assert not list((tmp_path / "logs").glob("*_launch.json"))


def test_the_merge_of_slices_waits_for_them_and_for_what_the_user_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "submission_limits", lambda: SubmissionLimits(array_size=2))
    count = f"n=$(ls {tmp_path}/file-* 2>/dev/null | wc -l)"
    _sbatch(tmp_path, monkeypatch, f"{count}; cp $1 {tmp_path}/file-$n; echo Submitted batch job 1$n")
    profile = replace(TWO_NODES, nodes=1, additional={"dependency": "afterok:3"})
    jobs = ShardJobs(slices=(("shard", "1"), ("shard", "2"), ("shard", "3")), merge=("shard", "merge"))
    code = planned_snapshot(tmp_path / "code")
    list(submit_shard(profile, jobs, run=print, logs=tmp_path / "logs", code=code))
    merge = (tmp_path / "file-2").read_text()
    assert "#SBATCH --dependency=afterok:3,afterany:10:11\n" in merge


# What sbatch prints.


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("Submitted batch job 12\n", ("12", None)),
        ("Submitted batch job 12 on cluster big\n", ("12", "big")),
        (
            "You have used 80 % of job 5000 hours.\nSubmitted batch job 12\nHave a nice day, job 7!\n",
            ("12", None),
        ),
        ("Welcome\n12\n", ("12", None)),
        ("12;big\n", ("12", "big")),
    ],
)
def test_the_number_of_a_job_is_found_in_what_a_site_prints(text: str, job: tuple[str, str | None]) -> None:
    assert parse_job_id(text) == job


def test_a_job_of_another_cluster_is_asked_for_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sbatch(tmp_path, monkeypatch, "echo 'Submitted batch job 12 on cluster big'")
    launch(TWO_NODES, VERB, run=print, logs=tmp_path / "logs")
    there = '[ "$1 $2" = "--clusters big" ] && echo "JobId=12 JobState=RUNNING RunTime=00:00:01 NodeList=b7"'
    programs(tmp_path / "bin", monkeypatch, scontrol=there)
    [status] = job_statuses(tmp_path / "logs")
    assert (status.state, status.nodes) == ("RUNNING", "b7")
    assert slurm_states(["12"]) is not None


def test_an_account_that_a_site_demands_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination"
    _sbatch(tmp_path, monkeypatch, f"echo '{refusal}' >&2; exit 1")
    with pytest.raises(UsageError, match="--account"):
        launch(TWO_NODES, VERB, run=print, logs=tmp_path / "logs")


def test_train_sbatch_is_a_correct_script() -> None:
    script = str(package_folder("slurm") / "train.sbatch")
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
