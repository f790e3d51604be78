"""Verbs on the two nodes of a real Slurm, preempted by a job of a higher partition: the same files."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from signllm.cluster.launch import launch
from signllm.cluster.profile import Profile
from signllm.data.loading.characters import load_characters
from signllm.data.loading.mixture import open_mixture
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.training.checkpoint import load_weights
from tests import warm
from tests.cluster.slurm import GRACE_S, Slurm, until
from tests.cluster.training import finetune_on_rank, verb_on_rank

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
ON_SLURM = Profile(nodes=2, partition="low", environment=ENVIRONMENT)
HERE = Profile(executor="local", tasks_per_node=2, environment=ENVIRONMENT)
pytestmark = pytest.mark.usefixtures("forked_ranks")


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
    os.kill(warm.fork_of(first), signal.SIGSTOP)  # Slurm sends SIGCONT before its warning
    steps = lines(preempted / "log.jsonl")
    slurm.preempt()
    states = slurm.wait()
    assert states[job.job_id] == "COMPLETED", f"{slurm}\n{job.stderr()}"
    assert slurm.field(job.job_id, "Restarts") == "1"
    assert 3 <= steps < lines(preempted / "log.jsonl")
    done = warm.run_ranks("tests.cluster.training", str(composed), str(straight), ranks=2)
    assert done.codes == [0, 0], done.stderr
    resumed, expected = load_weights(preempted), load_weights(straight)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())


@pytest.fixture
def shards(composed: Path, tmp_path: Path) -> Path:
    """The train split of ``composed``, each of its five videos in a shard of its own."""
    samples = [
        SourceSample(id=f"{n}", video=composed / f"train{n}", text=f"text {n}", split="train")
        for n in range(5)
    ]
    config = ShardConfig(encode="frames", shard_size_mb=0.001, show_progress=False)
    write_shards(Annotations(samples=tuple(samples), left_out=()), tmp_path / "shards", config)
    assert len(list((tmp_path / "shards").glob("*.tar"))) == len(samples)
    return tmp_path / "shards"


@pytest.fixture
def short_grace(slurm: Slurm) -> Iterator[None]:
    """Slurm ends at once what does not leave, until the test is over."""
    slurm.command("scontrol", "update", "PartitionName=low", "GraceTime=1")
    yield
    slurm.command("scontrol", "update", "PartitionName=low", f"GraceTime={GRACE_S}")


def preempted(slurm: Slurm, folder: Path, place: str, verb: list[str], profile: Profile = ON_SLURM) -> Any:
    """Run a verb on both nodes, preempted where both ranks are held; return the job, which ended well."""
    job = launch(profile, [place, str(folder), *verb], run=verb_on_rank, logs=folder / "logs")
    until(lambda: len(list(folder.glob("held-?"))) == 2, slurm)
    slurm.preempt()
    states = slurm.wait()
    assert states[job.job_id] == "COMPLETED", f"{slurm}\n{job.stderr()}"
    assert slurm.field(job.job_id, "Restarts") == "1"
    return job


def begun(folder: Path, attempt: int) -> list[str]:
    """Return the videos that the ranks began in an attempt."""
    return sorted({id for path in folder.glob(f"begun-{attempt}-?") for id in path.read_text().split()})


def uncomposed(composed: Path, run: Path) -> Path:
    """Return a copy of the pretrained run as it was before stage 2."""
    ignored = shutil.ignore_patterns("words.*", "characters*")
    return Path(shutil.copytree(composed / "pretrain", run, ignore=ignored))


def compose_verb(run: Path, shards: Path) -> list[str]:
    return ["compose", "tiny", "--run", str(run), "--data", str(shards)]


def contents(run: Path) -> dict[str, Any]:
    """Return the words of a run and the characters of its five shards; safetensors orders metadata anyhow."""
    files = sorted((run / "characters").glob("*.safetensors"))
    loaded = [load_characters(path) for path in files]
    characters = [
        {id: c.tolist() for id, c in characters_by_id.items()} | {"codebook": book}
        for characters_by_id, book in loaded
    ]
    return {"words": (run / "words.json").read_bytes(), "characters": characters}


def composed_straight(composed: Path, shards: Path, run: Path) -> dict[str, bytes]:
    """Return what one rank composes here, undisturbed."""
    from signllm.stages.compose import compose
    from tests.stages import path

    compose(uncomposed(composed, run), open_mixture(shards), path.COMPOSE)
    assert len(contents(run)["characters"]) == 5
    return contents(run)


def test_compose_goes_on_with_the_shards_that_are_missing(
    slurm: Slurm, composed: Path, shards: Path, tmp_path: Path
) -> None:
    run = uncomposed(composed, tmp_path / "run")
    preempted(slurm, tmp_path, "video", compose_verb(run, shards))
    assert begun(tmp_path, 0) == ["0", "1", "2", "3"]
    assert not {"0", "1"} & set(begun(tmp_path, 1))
    assert contents(run) == composed_straight(composed, shards, tmp_path / "straight")


def test_evaluate_keeps_what_it_has_translated(slurm: Slurm, tmp_path: Path) -> None:
    from signllm.inference.evaluate import EvaluateConfig, evaluate
    from tests.inference import trained

    trained.write_shards(tmp_path)
    run = trained.write_run(tmp_path / "run", trained.save_sensitive_language_model(tmp_path / "llm"))
    straight = Path(shutil.copytree(run, tmp_path / "straight"))
    evaluate(straight, tmp_path / "shards", "test", EvaluateConfig(batch_size=1))
    verb = ["evaluate", "--run", str(run), "--data", str(tmp_path / "shards"), "--split", "test"]
    preempted(slurm, tmp_path, "translation", [*verb, "--batch-size", "1"])
    first, second = begun(tmp_path, 0), begun(tmp_path, 1)
    assert len(first) == 4
    assert set(first) | set(second) == {f"clip{n}" for n in range(len(trained.LENGTHS))}
    assert set(first) & set(second) <= {"clip0"}, "it only fills up the last batches"
    hypotheses = [(each / "hypotheses.test.jsonl").read_bytes() for each in (run, straight)]
    scores = [json.loads((each / "scores.test.json").read_text()) for each in (run, straight)]
    assert hypotheses[0] == hypotheses[1]
    assert scores[0] | {"seconds": 0} == scores[1] | {"seconds": 0}
    assert not (run / "unfinished.test.jsonl").exists()


def test_a_warning_before_the_verb_begins_queues_the_job_again(
    slurm: Slurm, composed: Path, shards: Path, tmp_path: Path
) -> None:
    """The handler of submitit has it then: the first rank queues the job again, and Slurm ends the other."""
    run = uncomposed(composed, tmp_path / "run")
    job = preempted(slurm, tmp_path, "verb", compose_verb(run, shards))
    assert "Not checkpointing nor requeuing since I am a slave" in job.task(1).stdout()
    assert not list(tmp_path.glob("begun-0-*"))
    assert contents(run) == composed_straight(composed, shards, tmp_path / "straight")


PAUSED_PYTHON = """\
import os, sys, time
if "submitit.core._submit" in sys.orig_argv and "SLURM_RESTART_COUNT" not in os.environ:
    open(os.path.join(os.path.dirname(__file__), "held-" + os.environ["SLURM_PROCID"]), "w").close()
    time.sleep(600)
"""


@pytest.mark.usefixtures("short_grace")
def test_a_warning_before_submitit_listens_queues_the_job_again(
    slurm: Slurm, composed: Path, shards: Path, tmp_path: Path
) -> None:
    """It is not heard; Slurm ends both ranks when the grace is over, and queues the job again by itself."""
    (tmp_path / "sitecustomize.py").write_text(PAUSED_PYTHON)
    paths = f"{tmp_path}{os.pathsep}{Path(__file__).resolve().parents[2]}"
    profile = replace(ON_SLURM, environment={**ENVIRONMENT, "PYTHONPATH": paths})
    run = uncomposed(composed, tmp_path / "run")
    preempted(slurm, tmp_path, "python", compose_verb(run, shards), profile)
    assert contents(run) == composed_straight(composed, shards, tmp_path / "straight")
