"""The same verb on a cluster: submitit writes the sbatch file and starts one process per rank.

Costs one pickle of the argument list and one copy of the code (:mod:`signllm.cluster.snapshot`); no data
travels. What a rank does is in :mod:`signllm.cluster.rank`.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from signllm.cluster.job_logs import job_memory_folder
from signllm.cluster.profile import Profile
from signllm.cluster.rank import VerbOnRank
from signllm.cluster.record import next_steps, write_record
from signllm.cluster.secrets import refuse_secret_values
from signllm.cluster.site_environment import process_environment, site_environment
from signllm.cluster.slurm_jobs import SubmissionLimits, submission_limits
from signllm.cluster.snapshot import Snapshot, pack
from signllm.cluster.sweep import option_value, owned_folder
from signllm.errors import RunFailedError, UsageError
from signllm.training.local_ranks import RANK_FAILED
from signllm.training.rank_memory import describe_deaths, read_memory

PYTHON = shlex.join(["sh", "-c", 'trap \'\' USR2 TERM; exec "$0" "$@"', sys.executable])
"""How a rank starts Python: a warning that comes before submitit takes warnings would fail the job.

What is ignored stays so until a program takes it. So early there is nothing to save: Slurm ends the attempt
when the grace is over, and queues the job again by itself.
"""
T = TypeVar("T")
Run = Callable[[Sequence[str]], None]


def sbatch_text(
    profile: Profile,
    arguments: Sequence[str],
    logs: Path,
    *,
    jobs: int = 1,
    after: Sequence[str] = (),
    code: Snapshot | None = None,
) -> str:
    """Return the sbatch file that :func:`launch` or :func:`launch_array` would submit; needs no Slurm."""
    from signllm.cluster.sbatch import sbatch_file

    _refuse_secrets(profile, [arguments])
    logs = logs.absolute()
    command = " ".join([PYTHON, "-u -m submitit.core._submit", shlex.quote(str(logs))])
    name = job_name(arguments) if jobs == 1 else job_name(arguments[:1])
    parameters = _slurm_parameters(profile, name, after, code) | ({"map_count": jobs} if jobs > 1 else {})
    return sbatch_file(command, logs, parameters, dropped=profile.dropped_options)


def environment_lines(profile: Profile, arguments: Sequence[str], logs: Path) -> list[str]:
    """Return what to tell the user about settings of this shell that sbatch reads as well."""
    return site_environment(sbatch_text(profile, arguments, logs)).describe()


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
    after: Sequence[str] = (),
    code: Snapshot | None = None,
) -> Any:
    """Submit ``signllm ARGUMENTS``; return submitit's job, whose ``job_id`` Slurm knows.

    Args:
        profile: what to ask for.
        arguments: the verb and its options.
        run: what runs them on a rank; pickled by its name.
        logs: folder for the job's files and its ranks' output.
        after: numbers of the jobs or arrays that must have ended before, in whatever way.
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
    """Submit one job for each command line, as Slurm arrays (:func:`split_into_arrays`); return the jobs.

    Raises:
        UsageError: as :func:`launch`; then none of the jobs is left.
    """
    return _submit(profile, commands, run=run, logs=logs, after=(), code=code)


def split_into_arrays(jobs: Sequence[T], limits: SubmissionLimits | None = None) -> list[Sequence[T]]:
    """Cut the jobs of a sweep into arrays that are no larger than the site allows.

    Args:
        jobs: what each of them does.
        limits: the site's; None asks Slurm, and without Slurm there are none.
    """
    if len(jobs) == 1:  # a job alone needs no limit, and a Slurm that is out of order answers after a minute
        return [jobs]
    limits = submission_limits() if limits is None else limits
    size = max(1, len(jobs) if limits.array_size is None else limits.array_size)
    return [jobs[first : first + size] for first in range(0, len(jobs), size)]


def _submit(
    profile: Profile,
    commands: Sequence[Sequence[str]],
    *,
    run: Run,
    logs: Path,
    after: Sequence[str],
    code: Snapshot | None,
) -> list[Any]:
    check_submission(profile, commands)
    logs.mkdir(parents=True, exist_ok=True)
    for folder in {owned_folder(words) for words in commands}:
        if code is not None and folder is not None:
            pack(code, Path(folder))
    verbs = [VerbOnRank(tuple(words), run) for words in commands]
    name, cluster = profile.name or job_name(*commands), None
    if profile.executor == "slurm":
        jobs, cluster = _submit_to_slurm(profile, name, verbs, logs, after, code)
    else:
        jobs = _start_local(profile, verbs, logs, code)
    write_record(logs, profile, name, commands, [job.job_id for job in jobs], code, cluster=cluster)
    return jobs


def _submit_to_slurm(
    profile: Profile,
    name: str,
    verbs: Sequence[VerbOnRank],
    logs: Path,
    after: Sequence[str],
    code: Snapshot | None,
) -> tuple[list[Any], str | None]:
    """Submit one job, or arrays; return the jobs and their cluster, if Slurm named one.

    Where a sweep needs several arrays and no more than some of its jobs may run at a time, each array waits
    for the end of the one before it.
    """
    from submitit.core.utils import FailedJobError

    from signllm.cluster.sbatch import SbatchExecutor

    jobs: list[Any] = []
    cluster = None
    for part in split_into_arrays(verbs):
        executor = SbatchExecutor(
            logs,
            max_num_timeout=profile.max_timeouts,
            python=PYTHON,
            dropped=profile.dropped_options,
        )
        before = [jobs[-1].job_id.partition("_")[0]] if jobs and profile.array_parallelism else after
        executor.update_parameters(**_slurm_parameters(profile, name, before, code))
        with process_environment(site_environment(executor.file_text()).variables):
            try:
                jobs += executor.submit_array(part)
            except FailedJobError as error:
                for job in jobs:
                    job.cancel(check=False)
                raise _refusal(str(error).strip(), len(verbs)) from None
        cluster = executor.cluster or cluster
    return jobs, cluster


def _refusal(answer: str, jobs: int) -> UsageError:
    """Return the message about a job that sbatch did not take, given what it printed."""
    remedy = "compare the profile with what the site offers (sinfo); --dry-run shows the file"
    if re.search(r"SubmitJob|SubmitLimit|job submit limit|unable to accept job", answer):
        remedy = f"the site takes fewer than {jobs} more jobs of yours: give --array fewer values at a time"
    elif "array specification" in answer:
        remedy = "`scontrol show config` names the site's MaxArraySize: give --array no more values than that"
    elif "account" in answer.lower():
        remedy = "name yours: --account, or SBATCH_ACCOUNT in this shell; `sacctmgr show assoc` lists them"
    return UsageError(f"Slurm refused the job: {answer}", where="sbatch", remedy=remedy)


def _start_local(
    profile: Profile, verbs: Sequence[VerbOnRank], logs: Path, code: Snapshot | None
) -> list[Any]:
    from submitit import LocalExecutor

    executor = LocalExecutor(folder=logs, max_num_timeout=profile.max_timeouts)
    executor.update_parameters(**_local_parameters(profile, code))
    with process_environment(site_environment("").variables):
        return list(executor.submit_array(verbs))


def check_submission(profile: Profile, commands: Sequence[Sequence[str]]) -> None:
    """Check what can be known before anything is written.

    Raises:
        UsageError: this machine has no Slurm, the site takes fewer jobs, or a file would hold a secret.
    """
    from submitit import SlurmExecutor

    if profile.executor == "slurm" and SlurmExecutor.affinity() < 0:
        raise UsageError(
            "this machine has no Slurm: srun is not on the path",
            remedy="submit from a login node, add --dry-run to see the job, or use the profile 'local'",
        )
    if profile.executor == "slurm" and len(commands) > 1:
        submission_limits().refuse_more(len(commands))
    _refuse_secrets(profile, commands)


def _refuse_secrets(profile: Profile, commands: Sequence[Sequence[str]]) -> None:
    """Raise UsageError where a secret of this shell's environment would be written into the job's files."""
    texts = [*profile.environment.values(), *profile.setup, *profile.additional.values()]
    refuse_secret_values(texts, where="the profile")
    refuse_secret_values([word for words in commands for word in words], where="the command line")


def _slurm_parameters(
    profile: Profile, name: str, after: Sequence[str], code: Snapshot | None
) -> dict[str, Any]:
    """Return what to ask Slurm for.

    A job waits for another's end, good or bad: ``afterok`` would leave one in the queue that can never run.
    """
    asked = profile.slurm_parameters(name)
    asked["setup"] = [*asked["setup"], *_code_lines(code)]
    if after:
        additional = asked["additional_parameters"]
        own = additional.get("dependency")
        ended = f"afterany:{':'.join(after)}"
        asked["additional_parameters"] = additional | {"dependency": f"{own},{ended}" if own else ended}
    return asked


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


def describe_submission(
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
        yield f"code: {code.describe()}"
    if profile.executor == "slurm":
        yield from environment_lines(profile, commands[0], logs)
    yield from next_steps([job.job_id for job in jobs], logs, profile)


def _code_lines(code: Snapshot | None) -> list[str]:
    """Return the shell lines that make Python run the copy, whatever lies in the working directory."""
    if code is None:
        return []
    path = f'{shlex.quote(str(code.folder))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return ["export PYTHONSAFEPATH=1", f"export PYTHONPATH={path}"]


def _lost_ranks(job: Any) -> str | None:
    """Return the message about ranks that ended without a word; None where each said how it ended.

    Ranks that only lost the connection to them say the same; those may be ended before they can.
    """
    folder = job_memory_folder(job.paths.folder, job.job_id)
    messages = [_result_of(job.task(task)) for task in range(job.num_tasks)]
    died = {rank: read_memory(folder, rank) for rank, text in enumerate(messages) if text is None}
    own = [text for text in messages if text and f".{RANK_FAILED}: " not in text]
    if own or not died:
        return None
    message = next((text for text in messages if text), "").rpartition(f".{RANK_FAILED}: ")[2]
    if message.startswith("rank ") and "was killed" in message:
        return message.rstrip()
    return describe_deaths(died, where=job.paths.stderr)


def _result_of(task: Any) -> str | None:
    """Return what a rank left as its result: "" if it ended well, a traceback; None if it left nothing."""
    from submitit.core.utils import pickle_load

    if not task.paths.result_pickle.exists():
        return None
    outcome, text = pickle_load(task.paths.result_pickle)
    return str(text) if outcome == "error" else ""


def wait_for_job(job: Any) -> str:
    """Wait for a job and return what its first rank printed, without submitit's own lines.

    Raises:
        UsageError: a rank refused the user's input.
        RunFailedError: a rank failed otherwise; the message ends with what it wrote last.
    """
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        job.results()
    except (FailedJobError, UncompletedJobError) as error:
        message = str(error)
        if (mark := f"{UsageError.__module__}.{UsageError.__name__}: ") in message:
            raise UsageError(message.rpartition(mark)[2].partition("\n\n---")[0].rstrip()) from None
        if lost := _lost_ranks(job):
            raise RunFailedError(lost) from None
        last = "\n".join(message.strip().splitlines()[-20:])
        raise RunFailedError(f"job {job.job_id} failed; {job.paths.stderr} ends with\n{last}") from None
    printed = (job.task(0).stdout() or "").splitlines(keepends=True)
    return "".join(line for line in printed if not line.startswith("submitit "))
