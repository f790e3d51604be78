"""The same verb on a cluster: submitit writes the sbatch file and starts one process per rank.

Costs one pickle of the argument list and one copy of the code (:mod:`signllm.cluster.snapshot`); no data
travels. What a rank does is in :mod:`signllm.cluster.rank`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from signllm.cluster.profile import Profile
from signllm.cluster.rank import VerbOnRank
from signllm.cluster.record import next_steps, write_record
from signllm.cluster.secret import refuse_spelt_out
from signllm.cluster.snapshot import Snapshot, pack
from signllm.cluster.sweep import option_value, owned_folder
from signllm.errors import RunFailedError, UsageError

SITE_VARIABLES = ("SLURM_CONF",)
PYTHON = shlex.join(["sh", "-c", 'trap \'\' USR2 TERM; exec "$0" "$@"', sys.executable])
"""How a rank starts Python: a warning that comes before submitit takes warnings would fail the job.

What is ignored stays so until a program takes it. So early there is nothing to save: Slurm ends the attempt
when the grace is over, and queues the job again by itself.
"""
Run = Callable[[Sequence[str]], None]


def sbatch_text(
    profile: Profile,
    arguments: Sequence[str],
    logs: Path,
    *,
    jobs: int = 1,
    after: str | None = None,
    code: Snapshot | None = None,
) -> str:
    """Return the sbatch file that :func:`launch` or :func:`launch_array` would submit; needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    _refuse_secrets(profile, [arguments])
    logs = logs.absolute()
    command = " ".join([PYTHON, "-u -m submitit.core._submit", shlex.quote(str(logs))])
    name = job_name(arguments) if jobs == 1 else job_name(arguments[:1])
    asked = _slurm_parameters(profile, name, after, code)
    return _make_sbatch_string(command=command, folder=logs, map_count=jobs if jobs > 1 else None, **asked)


def job_name(*commands: Sequence[str]) -> str:
    """Name jobs after their verb and, if they share one, their run folder: ``signllm-pretrain-X``."""
    runs = {option_value(words, "--run") for words in commands}
    run = runs.pop() if len(runs) == 1 else None
    return "-".join(["signllm", *commands[0][:1], *([Path(run).name] if run else [])])


def launch(
    profile: Profile,
    arguments: Sequence[str],
    *,
    run: Run,
    logs: Path,
    after: str | None = None,
    code: Snapshot | None = None,
) -> Any:
    """Submit ``signllm ARGUMENTS``; return submitit's job, whose ``job_id`` Slurm knows.

    Args:
        profile: what to ask for.
        arguments: the verb and its options.
        run: what runs them on a rank; pickled by its name.
        logs: folder for the job's files and its ranks' output.
        after: number of the job or array that must have ended before, in whatever way.
        code: the copy of the code that the job runs; None: the package as it is found when the job starts.

    Raises:
        UsageError: this machine has no Slurm, Slurm refuses the job, or it would write a secret.
    """
    return _submit(profile, [arguments], run=run, logs=logs, after=after, code=code)[0]


def launch_array(
    profile: Profile,
    commands: Sequence[Sequence[str]],
    *,
    run: Run,
    logs: Path,
    code: Snapshot | None = None,
) -> list[Any]:
    """Submit one job for each of the command lines, on Slurm as one array; return submitit's jobs.

    Raises:
        UsageError: as :func:`launch`.
    """
    return _submit(profile, commands, run=run, logs=logs, after=None, code=code)


def _submit(
    profile: Profile,
    commands: Sequence[Sequence[str]],
    *,
    run: Run,
    logs: Path,
    after: str | None,
    code: Snapshot | None,
) -> list[Any]:
    from submitit import LocalExecutor, SlurmExecutor
    from submitit.core.utils import FailedJobError
    from submitit.helpers import clean_env

    check(profile, commands)
    logs.mkdir(parents=True, exist_ok=True)
    for folder in {owned_folder(words) for words in commands}:
        if code is not None and folder is not None:
            pack(code, Path(folder))
    site = {name: os.environ[name] for name in SITE_VARIABLES if name in os.environ}
    with clean_env():  # a launch from inside a job must not hand that job's ranks on
        os.environ.update(site)
        executor: Any
        if profile.executor == "slurm":
            executor = SlurmExecutor(folder=logs, max_num_timeout=profile.max_timeouts, python=PYTHON)
            executor.update_parameters(**_slurm_parameters(profile, job_name(*commands), after, code))
        else:
            executor = LocalExecutor(folder=logs, max_num_timeout=profile.max_timeouts)
            executor.update_parameters(**_local_parameters(profile, code))
        try:
            jobs = list(executor.submit_array([VerbOnRank(tuple(words), run) for words in commands]))
        except FailedJobError as error:
            raise UsageError(
                f"Slurm refused the job: {str(error).strip()}",
                where="sbatch",
                remedy="compare the profile with what the site offers (sinfo); --dry-run shows the file",
            ) from None
    name = profile.name or job_name(*commands)
    write_record(logs, profile, name, commands, [job.job_id for job in jobs], code)
    return jobs


def check(profile: Profile, commands: Sequence[Sequence[str]]) -> None:
    """Check what can be known before anything is written.

    Raises:
        UsageError: this machine has no Slurm, or the job's files would hold a secret.
    """
    from submitit import SlurmExecutor

    if profile.executor == "slurm" and SlurmExecutor.affinity() < 0:
        raise UsageError(
            "this machine has no Slurm: srun is not on the path",
            remedy="submit from a login node, add --dry-run to see the job, or use the profile 'local'",
        )
    _refuse_secrets(profile, commands)


def _refuse_secrets(profile: Profile, commands: Sequence[Sequence[str]]) -> None:
    """Raise UsageError where a secret of this shell's environment would be written into the job's files."""
    told = [*profile.environment.values(), *profile.setup, *profile.additional.values()]
    refuse_spelt_out(told, where="the profile")
    refuse_spelt_out([word for words in commands for word in words], where="the command line")


def _slurm_parameters(
    profile: Profile, name: str, after: str | None, code: Snapshot | None
) -> dict[str, Any]:
    """Return what to ask Slurm for.

    A job waits for another's end, good or bad: ``afterok`` would leave one in the queue that can never run.
    """
    asked = profile.slurm_parameters(name)
    asked["setup"] = [*asked["setup"], *_code_lines(code)]
    return asked | ({"dependency": f"afterany:{after}"} if after else {})


def _local_parameters(profile: Profile, code: Snapshot | None) -> dict[str, Any]:
    return {
        "tasks_per_node": profile.ranks_per_node,
        "gpus_per_node": profile.gpus,
        "timeout_min": profile.minutes,
        "signal_delay_s": profile.signal_delay_s,
        # submitit takes the shell's number for the job's: with a trap, bash does not give it away to the last
        # command of its line. Ctrl-C is for whoever shows the job: submitit would kill the ranks (run_here).
        "setup": ["trap : EXIT", "trap '' INT", *profile.exports(), *profile.setup, *_code_lines(code)],
    }


def told(
    profile: Profile,
    jobs: Sequence[Any],
    commands: Sequence[Sequence[str]],
    logs: Path,
    code: Snapshot | None,
) -> Iterator[str]:
    """Yield what to tell the user about submitted jobs: what they do, where they write, what to type next."""
    from submitit.core.utils import JobPaths

    nodes, ranks = profile.nodes, profile.ranks_per_node
    size = f"{nodes} node{'s' if nodes > 1 else ''} x {ranks} rank{'s' if ranks > 1 else ''}"
    for job, words in zip(jobs, commands, strict=True):
        yield f"job {job.job_id}: signllm {shlex.join(words)}"
    yield f"size: {size if len(jobs) == 1 else f'{size}, each job'}"
    paths = jobs[0].paths if len(jobs) == 1 else JobPaths(logs, f"{jobs[0].job_id.partition('_')[0]}_N")
    yield f"log: {paths.stderr}, results in .out beside it"
    if code is not None:
        yield f"code: {code.told()}"
    yield from next_steps([job.job_id for job in jobs], logs, profile)


def _code_lines(code: Snapshot | None) -> list[str]:
    """Return the shell lines that make Python run the copy, whatever lies in the working directory."""
    if code is None:
        return []
    path = f'{shlex.quote(str(code.folder))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return ["export PYTHONSAFEPATH=1", f"export PYTHONPATH={path}"]


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
