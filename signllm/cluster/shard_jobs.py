"""``signllm launch ... -- shard``: an array of jobs that write slices, then one job that merges them.

The merge waits for the end of all slices, successful or not (``afterany``). If a slice failed it reports
which one, and no job stays in the queue that can never run. Finished slices are not submitted again, so the
same launch after a failure only does what is missing.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from signllm.cluster.launch import Run, launch, launch_array, sbatch_text, split_into_arrays
from signllm.cluster.local_jobs import run_local_jobs
from signllm.cluster.profile import Profile
from signllm.cluster.record import next_steps
from signllm.cluster.snapshot import Snapshot
from signllm.data.shards.slices import Slice
from signllm.errors import UsageError


@dataclass(frozen=True)
class ShardJobs:
    """The command lines that shard a dataset with many jobs.

    Attributes:
        slices: ``shard ... --slice i/n`` for each slice to be written.
        merge: ``shard ... --merge n``.
    """

    slices: tuple[tuple[str, ...], ...]
    merge: tuple[str, ...]


def shard_jobs(arguments: Sequence[str], parts: Sequence[Slice], count: int) -> ShardJobs:
    """Return the jobs of ``shard ARGUMENTS`` for the slices ``parts`` of ``count``."""
    slices = tuple((*arguments, "--slice", str(part)) for part in parts)
    return ShardJobs(slices=slices, merge=(*arguments, "--merge", str(count)))


def with_workers(arguments: Sequence[str], workers: int) -> tuple[str, ...]:
    """Return the command line with ``--workers`` added, unless it has that option."""
    is_given = any(word == "--workers" or word.startswith("--workers=") for word in arguments)
    return tuple(arguments) if is_given else (*arguments, "--workers", str(workers))


def dry_run(profile: Profile, jobs: ShardJobs, logs: Path, code: Snapshot) -> str:
    """Return the command lines and sbatch files that :func:`submit` would submit; needs no Slurm."""
    texts = []
    if jobs.slices:
        texts += [f"# signllm {shlex.join(words)}" for words in jobs.slices]
        for part in split_into_arrays(jobs.slices):
            texts.append(sbatch_text(profile, part[0], logs, jobs=len(part), code=code))
    after = ["SLICES"] if jobs.slices else []
    merge = sbatch_text(profile, jobs.merge, logs, after=after, code=code)
    return "\n".join([*texts, f"# signllm {shlex.join(jobs.merge)}", merge])


def submit(profile: Profile, jobs: ShardJobs, *, run: Run, logs: Path, code: Snapshot) -> Iterator[str]:
    """Submit the slices and the merge; yield lines for the user.

    Raises:
        UsageError: Slurm refuses a job; then none is left.
    """
    slices = launch_array(profile, jobs.slices, run=run, logs=logs, code=code) if jobs.slices else []
    for job, words in zip(slices, jobs.slices, strict=True):
        yield f"job {job.job_id}: slice {words[-1]}, {job.paths.stderr}"
    numbers = list(dict.fromkeys(job.job_id.partition("_")[0] for job in slices))
    try:
        merge = launch(profile, jobs.merge, run=run, logs=logs, after=numbers, code=code)
    except UsageError:
        for job in slices:
            job.cancel(check=False)
        raise
    yield f"job {merge.job_id}: the merge, {merge.paths.stderr}"
    yield from next_steps([*[job.job_id for job in slices], merge.job_id], logs, profile)
    yield "if a slice fails, the merge reports which; the same command again does what is missing"


def run_slices(profile: Profile, jobs: ShardJobs, *, run: Run, logs: Path, code: Snapshot) -> None:
    """Run the slices in parallel on this machine, then the merge.

    Raises:
        UsageError: a job refused the dataset.
        RunFailedError: a job failed for another reason.
    """
    start = functools.partial(launch, profile, run=run, logs=logs, code=code)
    parallel = profile.array_parallelism or max(1, len(jobs.slices))
    run_local_jobs(
        [functools.partial(start, words) for words in jobs.slices], at_once=parallel, what="slices"
    )
    run_local_jobs([functools.partial(start, jobs.merge)], at_once=1)
