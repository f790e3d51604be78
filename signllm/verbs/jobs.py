"""``signllm launch``: any other verb as a job, checked completely before anything is submitted."""

import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from signllm.command import Job, Verb, get_job_options, prepare_job
from signllm.errors import UsageError
from signllm.verbs.data import check_shard, split_shard
from signllm.verbs.job_status import status_verb

if TYPE_CHECKING:
    from signllm.cluster.profile import Profile

SUMMARY = "run a verb as a job on Slurm or on this machine; `launch status` shows its state"
EXAMPLE = "signllm launch local --dry-run -- pretrain phoenix2014t --data shards --run runs/pretrain"
SWEEP = (
    "signllm launch a100 --array seed=0..2 -- "
    "pretrain phoenix2014t --data shards --training.seed {seed} --run runs/seed-{seed}"
)
Check = Callable[[Sequence[str]], Any]
Run = Callable[[Sequence[str]], None]


def launch_verb(*, check: Check, run: Run) -> Verb:
    """Return the verb ``launch``, given functions that check and run any verb."""
    return Verb(SUMMARY, EXAMPLE, functools.partial(_launch, check=check, run=run))


def _launch(arguments: list[str], *, check: Check, run: Run) -> Job:
    import tyro

    from signllm.cluster.profile import Profile, load_profile
    from signllm.cluster.record import DEFAULT_LOGS

    if arguments[:1] == ["status"]:
        return status_verb(arguments[1:])
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, verb = arguments[:cut], arguments[cut + 1 :]
    named = bool(options) and not options[0].startswith("-")
    resources = Annotated[Profile, tyro.conf.arg(name="")]
    profile = load_profile(options[0] if named else "local")
    commands: list[tuple[str, ...]] = []
    checked: list[dict[str, Any]] = []

    def launch(
        *,
        dry_run: bool = False,
        array: tuple[str, ...] = (),
        logs: Path = DEFAULT_LOGS,
        profile: resources = profile,
    ) -> None:
        """Launch a verb as a job.

        Args:
            dry_run: print the command lines and the sbatch file, with configuration, batch and plan as
                comments, and submit nothing.
            array: launch several jobs. NAME=VALUES launches one job per value, which replaces {NAME} in the
                verb's arguments; VALUES is a,b,c or 0..9. Several NAME=VALUES launch one job per combination.
                A number N launches N jobs, and {i} is the number of a job. `shard` takes the number of jobs
                that share its work, by default --nodes.
            logs: folder for the job's files and the output of its ranks, on a file system that all nodes can
                access.
            profile: fields of the profile; each can be changed.
        """
        from signllm.cluster.dry_run import check_batch, describe_job

        for options_of_verb in checked:
            check_batch(options_of_verb, profile)
        plan = describe_job(verb[0], checked[0], profile, jobs=len(commands)) if dry_run else ""
        if verb[0] == "shard":
            count = _shard_count(array, profile.nodes)
            _launch_shard(verb[1:], profile, count, dry_run=dry_run, run=run, logs=logs)
        else:
            _launch_verbs(commands, profile, dry_run=dry_run, run=run, logs=logs)
        print(plan, end="")

    about = Verb(SUMMARY, f"{EXAMPLE}\n         {SWEEP}", functools.partial(_launch, check=check, run=run))
    job = prepare_job(launch, options[1:] if named else options, verb="launch", about=about)
    if not verb:
        raise UsageError(
            "no verb was given to launch", where="signllm launch", remedy=f"for example: {EXAMPLE}"
        )
    assert isinstance(job, functools.partial)
    commands += _commands(verb, job.keywords.get("array", ()))
    checked += [get_job_options(check(command)) for command in commands]
    return job


def _commands(verb: list[str], array: Sequence[str]) -> list[tuple[str, ...]]:
    from signllm.cluster.sweep import sweep

    if verb[0] == "launch":
        raise UsageError("a job cannot launch jobs", where="--", remedy="launch the verb itself")
    return sweep(array, verb) if array and verb[0] != "shard" else [tuple(verb)]


def _shard_count(array: Sequence[str], nodes: int) -> int:
    if not array:
        return nodes
    if len(array) > 1 or not array[0].isdecimal() or int(array[0]) < 1:
        remedy = "give the number of jobs that share the dataset, 1 or more: --array 8"
        raise UsageError(f"`shard` cannot use the array {' '.join(array)}", where="--array", remedy=remedy)
    return int(array[0])


def _launch_verbs(
    commands: Sequence[Sequence[str]], profile: "Profile", *, dry_run: bool, run: Run, logs: Path
) -> None:
    """Submit one job, or those of a sweep as arrays; without a scheduler run them on this machine."""
    from signllm.cluster import launch
    from signllm.cluster.local_jobs import run_local_jobs
    from signllm.cluster.snapshot import planned_snapshot, take_snapshot
    from signllm.cluster.status import refuse_busy_run_folders

    if dry_run:
        if len(commands) > 1:
            print("\n".join(f"# signllm {shlex.join(words)}" for words in commands))
        planned = planned_snapshot(logs / "code")
        before: list[str] = []
        for number, part in enumerate(launch.split_into_arrays(commands)):
            print(launch.sbatch_text(profile, part[0], logs, jobs=len(part), after=before, code=planned))
            before = [f"ARRAY{number}"] if profile.array_parallelism else []
        for line in launch.environment_lines(profile, commands[0], logs):
            print(f"# {line}")
        return
    launch.check_submission(profile, commands)
    refuse_busy_run_folders(commands, logs, profile)
    code = take_snapshot(logs / "code")
    if profile.executor == "local":
        start = functools.partial(_start_here, profile, run=run, logs=logs, code=code)
        run_local_jobs(
            [functools.partial(start, words) for words in commands], at_once=profile.array_parallelism or 1
        )
        return
    jobs = launch.launch_array(profile, commands, run=run, logs=logs, code=code)
    for line in launch.describe_submission(profile, jobs, commands, logs, code):
        print(line)


def _start_here(profile: "Profile", words: Sequence[str], *, run: Run, logs: Path, code: Any) -> Any:
    from signllm.cluster import launch

    job = launch.launch(profile, words, run=run, logs=logs, code=code)
    print(
        "\n".join(launch.describe_submission(profile, [job], [words], logs, code)),
        file=sys.stderr,
        flush=True,
    )
    return job


def _launch_shard(
    options: list[str], profile: "Profile", count: int, *, dry_run: bool, run: Run, logs: Path
) -> None:
    """Shard in one job, or in ``count`` jobs and a merge, after reading the dataset on this machine."""
    from signllm.cluster import launch, shard_jobs
    from signllm.cluster.snapshot import planned_snapshot, take_snapshot

    profile = profile.one_task()
    verb = shard_jobs.with_workers(["shard", *options], profile.cpus_per_task)
    if count == 1:
        check_shard(options)
        _launch_verbs([verb], profile, dry_run=dry_run, run=run, logs=logs)
        return
    count, parts = split_shard(options, count)
    jobs = shard_jobs.shard_jobs(verb, parts, count)
    if dry_run:
        print(shard_jobs.dry_run(profile, jobs, logs, planned_snapshot(logs / "code")))
        return
    print(f"{len(parts)} of {count} slices have to be written", flush=True)
    launch.check_submission(profile, [*jobs.slices, jobs.merge])
    code = take_snapshot(logs / "code")
    if profile.executor == "local":
        shard_jobs.run_slices(profile, jobs, run=run, logs=logs, code=code)
        return
    for line in shard_jobs.submit(profile, jobs, run=run, logs=logs, code=code):
        print(line, flush=True)
