"""``signllm launch ... -- shard``: slices side by side as an array of jobs, then one job that merges them.

The merge waits for the end of all slices, good or bad (``afterany``): where a slice failed it says which, at
once, and nothing stays in the queue that can never run. Slices that are finished already are not submitted
again, so the same launch after a failure does only what is missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signllm.cluster.launch import launch, launch_array, sbatch_text, wait
from signllm.cluster.profile import Profile
from signllm.data.slices import Slice
from signllm.errors import RunFailedError, UsageError

Run = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class ShardJobs:
    """The command lines of a dataset sharded by many jobs.

    Attributes:
        slices: ``shard ... --slice i/n`` for each slice that is to be written.
        merge: ``shard ... --merge n``.
    """

    slices: tuple[tuple[str, ...], ...]
    merge: tuple[str, ...]


def shard_jobs(arguments: Sequence[str], parts: Sequence[Slice], count: int) -> ShardJobs:
    """Return the jobs that ``shard ARGUMENTS`` makes for the slices ``parts`` of ``count``."""
    slices = tuple((*arguments, "--slice", str(part)) for part in parts)
    return ShardJobs(slices=slices, merge=(*arguments, "--merge", str(count)))


def with_workers(arguments: Sequence[str], workers: int) -> tuple[str, ...]:
    """Return the command line with ``--workers``, unless it says how many."""
    told = any(word == "--workers" or word.startswith("--workers=") for word in arguments)
    return tuple(arguments) if told else (*arguments, "--workers", str(workers))


def dry_run(profile: Profile, jobs: ShardJobs, logs: Path) -> str:
    """Return what :func:`submit` would submit: the command lines and the sbatch files; needs no Slurm."""
    texts = []
    if jobs.slices:
        texts += [f"# signllm {shlex.join(words)}" for words in jobs.slices]
        texts.append(sbatch_text(profile, jobs.slices[0], logs, jobs=len(jobs.slices)))
    after = "SLICES" if jobs.slices else None
    texts += [f"# signllm {shlex.join(jobs.merge)}", sbatch_text(profile, jobs.merge, logs, after=after)]
    return "\n".join(texts)


def submit(profile: Profile, jobs: ShardJobs, *, run: Run, logs: Path) -> Iterator[str]:
    """Submit slices and merge; yield what to tell the user. The local executor waits for their ends.

    Raises:
        UsageError: Slurm refuses a job (then none is left), or a local job refuses the dataset.
        RunFailedError: a local job failed otherwise.
    """
    slices = launch_array(profile, jobs.slices, run=run, logs=logs) if jobs.slices else []
    for job, words in zip(slices, jobs.slices, strict=True):
        yield f"job {job.job_id}: slice {words[-1]}, {job.paths.stderr}"
    if profile.executor == "local":
        _wait_for_all(slices)
    merge = _launch_merge(profile, jobs.merge, slices, run=run, logs=logs)
    yield f"job {merge.job_id}: the merge, {merge.paths.stderr}"
    if profile.executor == "local":
        yield wait(merge).rstrip()
        return
    ids = ",".join([*{job.job_id.partition("_")[0] for job in slices}, merge.job_id])
    yield f"follow: squeue --jobs {ids}"
    yield "where a slice fails, the merge says which; the same command again does what is missing"


def _launch_merge(
    profile: Profile, words: Sequence[str], slices: Sequence[Any], *, run: Run, logs: Path
) -> Any:
    after = slices[0].job_id.partition("_")[0] if slices and profile.executor == "slurm" else None
    try:
        return launch(profile, words, run=run, logs=logs, after=after)
    except UsageError:
        for job in slices:
            job.cancel(check=False)
        raise


def _wait_for_all(jobs: Sequence[Any]) -> None:
    """Wait until every job has ended, then raise the first failure."""
    failed: list[UsageError | RunFailedError] = []
    for job in jobs:
        try:
            wait(job)
        except (UsageError, RunFailedError) as error:
            failed.append(error)
    if failed:
        told = f"{len(failed)} of {len(jobs)} slices failed, finished ones are kept; the first: {failed[0]}"
        raise type(failed[0])(told)
