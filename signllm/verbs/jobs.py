"""``signllm launch``: any other verb as a job. It is checked completely before anything is submitted."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from signllm.command import Job, Verb, options_of, parse
from signllm.errors import UsageError
from signllm.verbs.data import check_shard, split_shard

if TYPE_CHECKING:
    from signllm.cluster.profile import Profile

SUMMARY = "the same verb as a job, on Slurm or here"
EXAMPLE = "signllm launch local --dry-run -- pretrain phoenix2014t --data shards --run runs/pretrain"
Check = Callable[[Sequence[str]], Any]
Run = Callable[[Sequence[str]], None]


def launch_verb(*, check: Check, run: Run) -> Verb:
    """Return the verb ``launch``, given what checks and what runs any verb."""
    return Verb(SUMMARY, EXAMPLE, functools.partial(_launch, check=check, run=run))


def _launch(arguments: list[str], *, check: Check, run: Run) -> Job:
    import tyro

    from signllm.cluster.profile import Profile, load_profile

    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, verb = arguments[:cut], arguments[cut + 1 :]
    named = bool(options) and not options[0].startswith("-")
    resources = Annotated[Profile, tyro.conf.arg(name="")]
    profile = load_profile(options[0] if named else "local")

    def launch(
        *,
        dry_run: bool = False,
        array: int | None = None,
        logs: Path = Path("runs/jobs"),
        profile: resources = profile,
    ) -> None:
        """Launch.

        Args:
            dry_run: print the sbatch file, with configuration, batch and plan as comments; submit nothing.
            array: jobs that share the verb's work; `shard` takes as many as --nodes if this is not given.
            logs: folder for the job's files and its ranks' output; on a file system that all nodes see.
            profile: fields of the profile, each can be changed.
        """
        if array is not None and (array < 1 or verb[0] != "shard"):
            what = f"an array of {array} jobs" if array < 1 else f"an array of {verb[0]}"
            remedy = "`shard` splits its work into as many jobs as you say, 1 or more; other verbs do not"
            raise UsageError(what, where="--array", remedy=remedy)
        from signllm.cluster.dry_run import check_batch, told

        options = options_of(checked)
        check_batch(options, profile)
        comments = told(verb[0], options, profile) if dry_run else ""
        if verb[0] == "shard":
            _launch_shard(verb[1:], profile, array or profile.nodes, dry_run=dry_run, run=run, logs=logs)
        else:
            _launch_verb(verb, profile, dry_run=dry_run, run=run, logs=logs)
        print(comments, end="")

    about = launch_verb(check=check, run=run)
    job = parse(launch, options[1:] if named else options, verb="launch", about=about)
    if not verb:
        raise UsageError("nothing to launch", where="signllm launch", remedy=f"for example: {EXAMPLE}")
    checked = check(verb)
    return job


def _launch_verb(verb: Sequence[str], profile: "Profile", *, dry_run: bool, run: Run, logs: Path) -> None:
    from signllm.cluster import launch

    if dry_run:
        print(launch.sbatch_text(profile, verb, logs))
        return
    job = launch.launch(profile, verb, run=run, logs=logs)
    print(f"job {job.job_id}: {job.paths.stdout}")
    if profile.executor == "local":
        print(launch.wait(job), end="")


def _launch_shard(
    options: list[str], profile: "Profile", count: int, *, dry_run: bool, run: Run, logs: Path
) -> None:
    """Shard in one job, or in ``count`` jobs and a merge; the dataset is read here first."""
    from signllm.cluster import shard_jobs

    profile = profile.one_task()
    verb = shard_jobs.with_workers(["shard", *options], profile.cpus_per_task)
    if count == 1:
        check_shard(options)
        _launch_verb(verb, profile, dry_run=dry_run, run=run, logs=logs)
        return
    count, parts = split_shard(options, count)
    jobs = shard_jobs.shard_jobs(verb, parts, count)
    if dry_run:
        print(shard_jobs.dry_run(profile, jobs, logs))
    else:
        print(f"{len(parts)} of {count} slices are to be written")
        for line in shard_jobs.submit(profile, jobs, run=run, logs=logs):
            print(line, flush=True)
