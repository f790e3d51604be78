"""The copy of the code: whole, shared, without caches; what a job runs though the checkout is edited."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from signllm import package_files
from signllm.cluster.snapshot import pack, planned_snapshot, take_snapshot
from signllm.errors import UsageError
from tests.cluster.slurm import Slurm

CHECKOUT = Path(__file__).parents[2]


def git(checkout: Path, *words: str) -> str:
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", "-C", str(checkout), *author, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of this project in git, to be edited."""
    made = tmp_path / "checkout"
    for name in ("signllm", "ds_configs", "slurm"):
        shutil.copytree(CHECKOUT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "-q", str(made))
    git(made, "add", "-A")
    git(made, "commit", "-q", "-m", "first")
    return made


def test_a_copy_is_the_source_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    (checkout / "signllm" / "__pycache__").mkdir()
    (checkout / "signllm" / "__pycache__" / "cli.cpython-311.pyc").touch()
    (checkout / "signllm" / ".secret").touch()
    (checkout / "slurm" / "slurm-12.out").touch()
    snapshot = take_snapshot(tmp_path / "code", checkout / "signllm")
    assert snapshot == planned_snapshot(tmp_path / "code", checkout / "signllm")
    assert [path.name for path in (tmp_path / "code").iterdir()] == [snapshot.folder.name]
    copied = {str(path.relative_to(snapshot.folder)) for path in snapshot.folder.rglob("*") if path.is_file()}
    guides = {name for name in git(checkout, "ls-files").splitlines() if name.endswith("README.md")}
    listed = set(git(checkout, "ls-files").splitlines()) - guides | {"slurm/README.md"}
    inside = {name if name.startswith("signllm/") else f"signllm/{name}" for name in listed}
    assert copied == {*inside, "origin.json"}
    assert json.loads((snapshot.folder / "origin.json").read_text()) == {
        "version": sys.modules["signllm.version"].VERSION,
        "commit": git(checkout, "rev-parse", "HEAD"),
        "changed": False,
    }


def test_the_same_code_shares_a_copy_and_changed_code_has_its_own(checkout: Path, tmp_path: Path) -> None:
    package, code = checkout / "signllm", tmp_path / "code"
    first = take_snapshot(code, package)
    os.utime(package / "cli.py", (1, 1))
    assert take_snapshot(code, package).folder == first.folder
    (package / "cli.py").write_text("# changed\n")
    second = take_snapshot(code, package)
    assert second.folder != first.folder
    assert second.changed
    assert second.commit == first.commit
    assert "with changes" in second.describe()
    assert len(list(code.iterdir())) == 2


def test_a_copy_that_was_edited_is_refused(checkout: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "code", checkout / "signllm")
    copied = snapshot.folder / "signllm" / "cli.py"
    assert copied.stat().st_mode & 0o222 == 0
    copied.chmod(0o644)
    copied.write_text("")
    with pytest.raises(UsageError, match="changed after it was made"):
        take_snapshot(tmp_path / "code", checkout / "signllm")


def test_a_copy_that_fails_leaves_nothing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UsageError, match="the disk is full"):
        take_snapshot(tmp_path / "code", checkout / "signllm")
    assert not list((tmp_path / "code").iterdir())


def test_the_run_keeps_the_code_packed(checkout: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "code", checkout / "signllm")
    (snapshot.folder / "signllm" / "__pycache__").mkdir()
    packed = pack(snapshot, tmp_path / "run")
    assert packed == tmp_path / "run" / "code" / f"{snapshot.folder.name}.tar.gz"
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    shutil.rmtree(snapshot.folder / "signllm" / "__pycache__")
    difference = ["diff", "-r", snapshot.folder, tmp_path / "unpacked" / snapshot.folder.name]
    assert subprocess.run(difference, capture_output=True, text=True).stdout == ""


def test_a_copy_holds_the_ds_configs_of_the_working_directory(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come before the shipped ones when a job is launched, so they do in the job."""
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text('{"mine": 1}')
    monkeypatch.chdir(tmp_path)
    package = take_snapshot(tmp_path / "code", checkout / "signllm").folder / "signllm"
    (tmp_path / "ds_configs" / "zero2.json").write_text('{"mine": "edited while the job waits"}')
    monkeypatch.setattr(package_files, "PACKAGE", package)
    zero_file = package_files.find_package_file("ds_configs", "zero2", ".json")
    assert json.loads(zero_file.read_text()) == {"mine": 1}
    (tmp_path / "zero2.json").write_text("{}")
    assert package_files.find_package_file("ds_configs", "zero2", ".json") == Path("zero2.json")


def test_a_waiting_job_runs_the_code_of_its_submission(slurm: Slurm, checkout: Path, tmp_path: Path) -> None:
    """The checkout breaks while the job waits, and still is broken when it is queued again."""
    lines = tmp_path / "lines.txt"
    lines.write_text("heute regnet es im norden\n")
    verb = ["score", "--hypotheses", str(lines), "--references", str(lines), "--json"]
    options = ["--logs", "logs", "--mem-gb", "1", "--cpus-per-task", "1", "--additional", "hold="]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "signllm", "launch", "cpu", *options, "--", *verb]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    job = re.match(r"job (\d+): ", done.stdout)
    assert job, done.stderr
    assert slurm.states()[job[1]] == "PENDING"
    assert f"commit {git(checkout, 'rev-parse', 'HEAD')[:12]})" in done.stdout
    (checkout / "signllm" / "__init__.py").write_text("raise RuntimeError('edited')\n")
    slurm.command("scontrol", "release", job[1])
    log = checkout / "logs" / f"{job[1]}_0_log.err"
    assert slurm.wait()[job[1]] == "COMPLETED", log.read_text()
    slurm.command("scontrol", "requeue", job[1])
    assert slurm.wait()[job[1]] == "COMPLETED", log.read_text()
    assert slurm.field(job[1], "Restarts") == "1"
    assert log.with_suffix(".out").read_text().count('"signature"') == 2
