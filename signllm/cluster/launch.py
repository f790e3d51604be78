"""The same verb on a cluster: submitit writes the sbatch file and starts one process per rank.

Costs one pickle of the argument list; no code or data travels. What a rank does is in
:mod:`signllm.cluster.rank`.
"""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from signllm.cluster.profile import Profile
from signllm.cluster.rank import VerbOnRank
from signllm.errors import RunFailedError, UsageError

SITE_VARIABLES = ("SLURM_CONF",)


def sbatch_text(
    profile: Profile, arguments: Sequence[str], logs: Path, *, jobs: int = 1, after: str | None = None
) -> str:
    """Return the sbatch file that :func:`launch` or :func:`launch_array` would submit; needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    logs = logs.absolute()
    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(logs)])
    asked = profile.slurm_parameters(job_name(arguments)) | _dependency(after)
    return _make_sbatch_string(command=command, folder=logs, map_count=jobs if jobs > 1 else None, **asked)


def job_name(arguments: Sequence[str]) -> str:
    """Name a job after its verb and its run folder: ``signllm-pretrain-X``."""
    words = [word for word in arguments if not word.startswith("-")]
    run = [Path(after).name for before, after in itertools.pairwise(arguments) if before == "--run"]
    return "-".join(["signllm", *words[:1], *run])


def launch(
    profile: Profile,
    arguments: Sequence[str],
    *,
    run: Callable[[Sequence[str]], None],
    logs: Path,
    after: str | None = None,
) -> Any:
    """Submit ``signllm ARGUMENTS``; return submitit's job, whose ``job_id`` Slurm knows.

    Args:
        profile: what to ask for.
        arguments: the verb and its options.
        run: what runs them on a rank; pickled by its name.
        logs: folder for the job's files and its ranks' output.
        after: number of the job or array that must have ended before, in whatever way.

    Raises:
        UsageError: this machine has no Slurm, or Slurm refuses the job.
    """
    return _submit(profile, [arguments], run=run, logs=logs, after=after)[0]


def launch_array(
    profile: Profile,
    commands: Sequence[Sequence[str]],
    *,
    run: Callable[[Sequence[str]], None],
    logs: Path,
) -> list[Any]:
    """Submit one job for each of the command lines, on Slurm as one array; return submitit's jobs.

    Raises:
        UsageError: as :func:`launch`.
    """
    return _submit(profile, commands, run=run, logs=logs, after=None)


def _submit(
    profile: Profile,
    commands: Sequence[Sequence[str]],
    *,
    run: Callable[[Sequence[str]], None],
    logs: Path,
    after: str | None,
) -> list[Any]:
    from submitit import LocalExecutor, SlurmExecutor
    from submitit.core.utils import FailedJobError
    from submitit.helpers import clean_env

    if profile.executor == "slurm" and SlurmExecutor.affinity() < 0:
        raise UsageError(
            "this machine has no Slurm: srun is not on the path",
            remedy="submit from a login node, add --dry-run to see the job, or use the profile 'local'",
        )
    logs.mkdir(parents=True, exist_ok=True)
    site = {name: os.environ[name] for name in SITE_VARIABLES if name in os.environ}
    with clean_env():  # a launch from inside a job must not hand that job's ranks on
        os.environ.update(site)
        executor: Any
        if profile.executor == "slurm":
            executor = SlurmExecutor(folder=logs, max_num_timeout=profile.max_timeouts)
            asked = profile.slurm_parameters(job_name(commands[0])) | _dependency(after)
            executor.update_parameters(**asked)
        else:
            executor = LocalExecutor(folder=logs, max_num_timeout=profile.max_timeouts)
            executor.update_parameters(**_local_parameters(profile))
        try:
            return list(executor.submit_array([VerbOnRank(tuple(words), run) for words in commands]))
        except FailedJobError as error:
            raise UsageError(
                f"Slurm refused the job: {str(error).strip()}",
                where="sbatch",
                remedy="compare the profile with what the site offers (sinfo); --dry-run shows the file",
            ) from None


def _dependency(after: str | None) -> dict[str, str]:
    """Wait for a job's end, good or bad: ``afterok`` would leave a job in the queue that can never run."""
    return {"dependency": f"afterany:{after}"} if after else {}


def _local_parameters(profile: Profile) -> dict[str, Any]:
    return {
        "tasks_per_node": profile.tasks_per_node,
        "gpus_per_node": profile.gpus_per_node,
        "timeout_min": profile.timeout_min,
        "signal_delay_s": profile.signal_delay_s,
        "setup": [*profile.exports(), *profile.setup],
    }


def wait(job: Any) -> str:
    """Wait for a job and return what its first rank printed, without submitit's own lines.

    Raises:
        UsageError: a rank refused the user's input.
        RunFailedError: a rank failed otherwise; the message ends with what it wrote last.
    """
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        job.results()
    except (FailedJobError, UncompletedJobError) as error:
        told = str(error)
        if (mark := f"{UsageError.__module__}.{UsageError.__name__}: ") in told:
            raise UsageError(told.rpartition(mark)[2].partition("\n\n---")[0].rstrip()) from None
        last = "\n".join(told.strip().splitlines()[-20:])
        raise RunFailedError(f"job {job.job_id} failed; {job.paths.stderr} ends with\n{last}") from None
    printed = (job.task(0).stdout() or "").splitlines(keepends=True)
    return "".join(line for line in printed if not line.startswith("submitit "))
