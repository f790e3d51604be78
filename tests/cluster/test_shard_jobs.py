"""A dataset sharded by many jobs: here without a scheduler, then on a real Slurm of two nodes."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from signllm import cli
from signllm.data.shards.writing import ShardConfig, shard
from signllm.data.video.decoding import encode_h264
from tests.cluster.slurm import Slurm, until

CLIPS = 14
OPTIONS = ["--shard-size-mb", "0.1", "--max-bad", "0"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of ``CLIPS`` mp4 files of noise, which takes long to encode."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), np.uint8)
    rows = ["video\ttext\tid"]
    for number in range(CLIPS):
        name = f"clip{number}.mp4"
        (tmp_path / name).write_bytes(encode_h264(np.roll(noise, number, axis=1), 25))
        rows.append(f"{name}\tsentence {number}\t{number}")
    (tmp_path / "table.tsv").write_text("\n".join(rows))
    return tmp_path / "table.tsv"


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A profile for this machine's Slurm, as a site would write one; its GPUs must not be asked for."""
    path = tmp_path / "two.toml"
    path.write_text('partition = "low"\ngpus = 4\ncpus_per_task = 2\n')
    return path


def launch(profile: Path | str, table: Path, *options: str, shard: tuple[str, ...] = ()) -> int:
    out, logs = table.parent / "out", table.parent / "logs"
    verb = ["shard", "table", str(table), str(out), *OPTIONS, *shard]
    return cli.main(["launch", str(profile), "--logs", str(logs), *options, "--", *verb])


def numbers(message: str) -> tuple[str, str]:
    """Return the numbers of the array and of the merge that a launch told."""
    array, merge = re.findall(r"^job (\d+)(?:_0)?:", message, flags=re.MULTILINE)
    return array, merge


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_whole(table: Path) -> bool:
    """Say whether ``out`` holds the very bytes that one run without slices writes."""
    config = ShardConfig(shard_size_mb=0.1, show_progress=False)
    shard("table", table, table.parent / "one", config)
    assert len(list((table.parent / "one").glob("*.tar"))) > 2
    return contents(table.parent / "out") == contents(table.parent / "one")


def break_clip(table: Path, number: int) -> bytes:
    path = table.with_name(f"clip{number}.mp4")
    original = path.read_bytes()
    path.write_bytes(b"no video")
    return original


def test_a_dry_run_tells_every_command_and_both_files(
    table: Path, profile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert launch(profile, table, "--nodes", "3", "--dry-run") == 0
    text = capsys.readouterr().out
    commands = re.findall(r"^# (signllm shard .*)$", text, flags=re.MULTILINE)
    assert [command.split()[-2:] for command in commands] == [
        ["--slice", "1/3"],
        ["--slice", "2/3"],
        ["--slice", "3/3"],
        ["--merge", "3"],
    ]
    assert all("--workers 2" in command for command in commands)
    array, merge = text.split("#!/bin/bash")[1:]
    assert "#SBATCH --array=0-2%3\n" in array
    assert "#SBATCH --dependency=afterany:SLICES\n" in merge
    for script in (array, merge):
        assert "--nodes=1\n" in script
        assert "--ntasks-per-node=1\n" in script
        assert "gpus" not in script
    assert launch(profile, table, "--array", "40", "--dry-run", shard=("--workers=1",)) == 0
    text = capsys.readouterr().out
    assert f"--slice {CLIPS}/{CLIPS}" in text  # no more slices than clips
    assert "--workers 2" not in text
    assert not (table.parent / "logs").exists()


def test_one_job_is_no_array(table: Path, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(profile, table, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "--array" not in text
    assert "--slice" not in text
    assert "--ntasks-per-node=1\n" in text


@pytest.mark.parametrize(
    ("options", "shard", "message"),
    [
        (["--array", "0"], [], "1 or more"),
        (["--array", "seed=0..2"], [], "1 or more"),
        (["--array", "3"], ["--slice", "1/2"], "--slice or --merge"),
        (["--array", "3"], ["--split-by", "signer"], "signer"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_submitted(
    options: list[str], shard: list[str], message: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("local", table, *options, shard=tuple(shard)) == 2
    assert message in capsys.readouterr().err
    assert launch("local", table.with_name("nowhere.tsv"), *options) == 2
    assert not (table.parent / "logs").exists()


def test_local_slices_fail_are_mended_and_merged(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = break_clip(table, 1)
    assert launch("local", table, "--array", "2") == 2
    failed = capsys.readouterr()
    assert "2 of 2 slices have to be written" in failed.out
    assert "1 of 2 slices failed; finished ones are kept" in failed.err
    assert "train/1: " in failed.err
    table.with_name("clip1.mp4").write_bytes(original)
    assert launch("local", table, "--array", "2") == 0
    done = capsys.readouterr().out
    assert "1 of 2 slices have to be written" in done
    assert "samples in the source: 14, left out: 0" in done
    assert is_whole(table)
    assert launch("local", table, "--array", "2") == 0
    assert "0 of 2 slices have to be written" in capsys.readouterr().out
    assert is_whole(table)


def test_where_the_merge_is_refused_no_slice_is_left(
    table: Path, profile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a site that takes one job and no second."""
    programs = table.parent / "bin"
    programs.mkdir()
    sbatch = 'grep -q -e --array= "$1" && echo Submitted batch job 7 || { echo no more jobs >&2; exit 1; }'
    for name, text in (("srun", "exit 0"), ("sbatch", sbatch), ("scancel", f"echo $1 >> {programs}/ended")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    assert launch(profile, table, "--array", "2") == 2
    assert "no more jobs" in capsys.readouterr().err
    assert (programs / "ended").read_text().split() == ["7_0", "7_1"]


def test_slurm_shards_with_an_array_and_goes_on_after_failures(
    slurm: Slurm, table: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is killed, one cannot read a clip: the merge says so and does not wait; these alone are redone."""
    original = break_clip(table, CLIPS - 1)
    assert launch(profile, table, "--array", "3") == 0
    array, merge = numbers(capsys.readouterr().out)
    until(lambda: (table.parent / "out/slices/1-of-3/train-000000.json").exists(), slurm, every_s=0.01)
    [rank] = slurm.ranks(SLURM_ARRAY_TASK_ID="0")
    os.kill(rank, signal.SIGKILL)
    states = slurm.wait()
    assert [states[f"{array}_{n}"] for n in range(3)] == ["FAILED", "COMPLETED", "FAILED"], slurm
    assert states[merge] == "FAILED"
    logs = table.parent / "logs"
    assert f"train/{CLIPS - 1}: " in (logs / f"{array}_2_0_log.err").read_text()
    assert "2 of 3 slices are not finished: 1/3, 3/3" in (logs / f"{merge}_0_log.err").read_text()
    table.with_name(f"clip{CLIPS - 1}.mp4").write_bytes(original)
    assert launch(profile, table, "--array", "3") == 0
    message = capsys.readouterr().out
    array, merge = numbers(message)
    assert f"job {array}_0: slice 1/3, {logs}/{array}_0_0_log.err" in message
    assert f"job {array}_1: slice 3/3, {logs}/{array}_1_0_log.err" in message
    assert f"follow: signllm launch status {array} {merge} --follow" in message
    assert slurm.wait()[merge] == "COMPLETED", slurm
    assert is_whole(table)


def test_slurm_queues_preempted_slices_again(
    slurm: Slurm, table: Path, profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job of a higher partition takes both nodes in the middle of the slices, which are held until then."""
    assert launch(profile, table, "--nodes", "2") == 0
    array, merge = numbers(capsys.readouterr().out)
    slices = table.parent / "out" / "slices"
    requeued: set[int] = set()

    def both_are_on_hold() -> bool:
        for number in {1, 2} - requeued:
            if (slices / f"{number}-of-2" / "train-000000.json").exists():
                [rank] = slurm.ranks(SLURM_ARRAY_TASK_ID=str(number - 1))
                os.kill(rank, signal.SIGSTOP)  # Slurm sends SIGCONT before its warning
                requeued.add(number)
        return len(requeued) == 2

    until(both_are_on_hold, slurm, every_s=0.01)
    assert not list(slices.glob("*/manifest.json")), "a slice ended before it could be held"
    slurm.preempt()
    assert slurm.wait()[merge] == "COMPLETED", slurm
    assert min(int(slurm.field(f"{array}_{n}", "Restarts")) for n in range(2)) == 1
    assert is_whole(table)
