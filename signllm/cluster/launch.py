"""Submit a verb to a cluster: submitit writes the sbatch file and starts one process per rank.

A submission costs one pickle of the argument list and one copy of the code (:mod:`signllm.cluster.snapshot`);
no data is copied. What each rank does is in :mod:`signllm.cluster.rank`.
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
from signllm.distributed.local_ranks import RANK_FAILED
from signllm.distributed.rank_memory import describe_deaths, read_memory
from signllm.errors import RunFailedError, UsageError

PYTHON = shlex.join(["sh", "-c", 'trap \'\' USR2 TERM; exec "$0" "$@"', sys.executable])
"""Command that starts Python in a rank, with the warning signals ignored until submitit handles them.

A warning that arrives earlier would otherwise fail the job. There is nothing to save then: Slurm ends the
attempt after the grace time and requeues the job.
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
    """Return lines about variables of this shell that sbatch also reads."""
    return site_environment(sbatch_text(profile, arguments, logs)).describe()


def job_name(*commands: Sequence[str]) -> str:
    """Return the name of jobs: their verb and, if they share one, run folder: ``signllm-pretrain-X``."""
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
    """Submit ``signllm ARGUMENTS`` and return submitit's job, whose ``job_id`` is Slurm's number.

    Args:
        profile: resources of the job.
        arguments: the verb and its options.
        run: function that runs the arguments on a rank; pickled by its name.
        logs: folder for the job's files and the output of its ranks.
        after: numbers of jobs or arrays that must have ended before, successfully or not.
        code: copy of the code that the job runs; None runs the package that is installed when the job starts.

    Raises:
        UsageError: this machine has no Slurm, Slurm refuses the job, or a file would contain a secret.
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
    """Submit one job for each command line, as Slurm arrays (:func:`split_into_arrays`), and return the jobs.

    Raises:
        UsageError: as in :func:`launch`; then none of the jobs is left.
    """
    return _submit(profile, commands, run=run, logs=logs, after=(), code=code)


def split_into_arrays(jobs: Sequence[T], limits: SubmissionLimits | None = None) -> list[Sequence[T]]:
    """Divide the jobs of a sweep into arrays that are no larger than the site allows.

    Args:
        jobs: the jobs.
        limits: limits of the site; None asks Slurm for them.
    """
    if len(jobs) == 1:  # no limit applies, and asking a Slurm that does not respond takes a minute
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

    If a sweep needs several arrays and only some of its jobs may run at the same time, each array waits for
    the end of the one before.
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
    """Return the error about a job that sbatch refused, given what sbatch printed."""
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
    """Check everything that can be checked before anything is written.

    Raises:
        UsageError: this machine has no Slurm, the site accepts fewer jobs, or a file would contain a secret.
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
    """Raise UsageError if a secret of this shell's environment would be written into the job's files."""
    texts = [*profile.environment.values(), *profile.setup, *profile.additional.values()]
    refuse_secret_values(texts, where="the profile")
    refuse_secret_values([word for words in commands for word in words], where="the command line")


def _slurm_parameters(
    profile: Profile, name: str, after: Sequence[str], code: Snapshot | None
) -> dict[str, Any]:
    """Return the parameters of submitit's Slurm executor.

    A job waits for the end of another one, successful or not (``afterany``): with ``afterok`` a job that can
    never run would stay in the queue.
    """
    parameters = profile.slurm_parameters(name)
    parameters["setup"] = [*parameters["setup"], *_code_lines(code)]
    if after:
        additional = parameters["additional_parameters"]
        existing = additional.get("dependency")
        ended = f"afterany:{':'.join(after)}"
        parameters["additional_parameters"] = additional | {
            "dependency": f"{existing},{ended}" if existing else ended
        }
    return parameters


def _local_parameters(profile: Profile, code: Snapshot | None) -> dict[str, Any]:
    return {
        "tasks_per_node": profile.ranks_per_node,
        "gpus_per_node": profile.gpus,
        "timeout_min": profile.minutes,
        "signal_delay_s": profile.signal_delay_s,
        # submitit uses the shell's process number as the job's: with a trap, bash does not hand it over to
        # the last command of its line. Ctrl-C is for the process that shows the output of the
        # job (run_here): submitit would kill the ranks.
        "setup": ["trap : EXIT", "trap '' INT", *profile.exports(), *profile.setup, *_code_lines(code)],
    }


def describe_submission(
    profile: Profile,
    jobs: Sequence[Any],
    commands: Sequence[Sequence[str]],
    logs: Path,
    code: Snapshot | None,
) -> Iterator[str]:
    """Yield lines about submitted jobs: what they do, where they write, and which commands follow them."""
    from submitit.core.utils import JobPaths

    nodes, ranks = profile.nodes, profile.ranks_per_node
    size = f"{nodes} node{'s' if nodes > 1 else ''} x {ranks} rank{'s' if ranks > 1 else ''}"
    for job, words in zip(jobs, commands, strict=True):
        yield f"job {job.job_id}: signllm {shlex.join(words)}"
    yield f"size: {size if len(jobs) == 1 else f'{size}, each job'}"
    paths = jobs[0].paths if len(jobs) == 1 else JobPaths(logs, f"{jobs[0].job_id.partition('_')[0]}_N")
    yield f"log: {paths.stderr}, results in the .out file next to it"
    if code is not None:
        yield f"code: {code.describe()}"
    if profile.executor == "slurm":
        yield from environment_lines(profile, commands[0], logs)
    yield from next_steps([job.job_id for job in jobs], logs, profile)


def _code_lines(code: Snapshot | None) -> list[str]:
    """Return the shell lines that make Python run the copied code, not that of the working directory."""
    if code is None:
        return []
    path = f'{shlex.quote(str(code.folder))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return ["export PYTHONSAFEPATH=1", f"export PYTHONPATH={path}"]


def _lost_ranks(job: Any) -> str | None:
    """Return the message about ranks that ended without a report; None if each reported how it ended.

    Ranks that only lost the connection to them may have been ended before they could report it, and do not
    count.
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
        RunFailedError: a rank failed for another reason; the message ends with the last lines of its log.
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
