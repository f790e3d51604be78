"""No secret is written anywhere, and the job has it all the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from signllm import cli
from signllm.cluster.launch import launch, wait_for_job
from signllm.cluster.profile import Profile
from signllm.cluster.secrets import is_secret
from signllm.cluster.snapshot import take_snapshot
from tests.cluster.slurm import Slurm

MARK = "hf_marker0123456789"
PROFILE = Profile(cpus_per_task=1, environment={"OMP_NUM_THREADS": "1"}, setup=("true",))


def files_with(mark: str, folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return [path for path in files if mark.encode() in path.read_bytes()]


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OTHER_NAME"):
        monkeypatch.setenv(name, MARK)


def submit(profile: Profile, folder: Path) -> str:
    code = take_snapshot(folder / "logs" / "code")

    def run(arguments: Sequence[str]) -> None:
        import hashlib
        import os

        print(hashlib.sha256(os.environ["HF_TOKEN"].encode()).hexdigest())

    words = ["pretrain", "--run", str(folder / "run")]
    return wait_for_job(launch(profile, words, run=run, logs=folder / "logs", code=code))


def test_a_local_job_has_the_secret_and_no_file_has(marked: None, tmp_path: Path) -> None:
    printed = submit(replace(PROFILE, executor="local"), tmp_path)
    assert printed.strip() == hashlib.sha256(MARK.encode()).hexdigest()
    assert files_with(MARK, tmp_path) == []


def test_a_job_of_slurm_has_the_secret_and_no_file_has(slurm: Slurm, marked: None, tmp_path: Path) -> None:
    printed = submit(PROFILE, tmp_path)
    assert printed.strip() == hashlib.sha256(MARK.encode()).hexdigest()
    assert files_with(MARK, tmp_path) == []
    assert list(tmp_path.glob("logs/*_submission.sh"))
    assert list(tmp_path.glob("logs/*_submitted.pkl"))
    assert list(tmp_path.glob("logs/*_launch.json"))


@pytest.mark.parametrize(
    "words",
    [
        ["--", "score", "--hypotheses", "{}", "--references", "r"],
        ["--environment", "A={}", "--", "score", "--hypotheses", "h", "--references", "r"],
        ["--setup", "login {}", "--", "score", "--hypotheses", "h", "--references", "r"],
    ],
)
@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_a_secret_that_is_spelt_out_is_refused(
    words: list[str],
    dry_run: list[str],
    marked: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs = tmp_path / "logs"
    spelt = [word.format(f"https://user:{MARK}@host/h.txt") for word in words]
    assert cli.main(["launch", "local", "--logs", str(logs), *dry_run, *spelt]) == 2
    printed = "".join(capsys.readouterr())
    assert "this contains the value of HF_TOKEN" in printed
    assert MARK not in printed
    assert not logs.exists()


def test_names_say_what_is_secret() -> None:
    assert all(map(is_secret, ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "db_password")))
    assert not any(map(is_secret, ("TOKENIZERS_PARALLELISM", "KEYBOARD", "PATH", "NCCL_DEBUG")))
