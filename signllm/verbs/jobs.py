"""``signllm launch``: any other verb as a job. It is checked completely before anything is submitted."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from signllm.command import Job, Verb, parse
from signllm.errors import UsageError

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
        *, dry_run: bool = False, logs: Path = Path("runs/jobs"), profile: resources = profile
    ) -> None:
        """Launch.

        Args:
            dry_run: print the sbatch file and submit nothing.
            logs: folder for the job's files and its ranks' output; on a file system that all nodes see.
            profile: fields of the profile, each can be changed.
        """
        from signllm.cluster import launch

        if dry_run:
            print(launch.sbatch_text(profile, verb, logs))
            return
        job = launch.launch(profile, verb, run=run, logs=logs)
        print(f"job {job.job_id}: {job.paths.stdout}")
        if profile.executor == "local":
            print(launch.wait(job), end="")

    about = launch_verb(check=check, run=run)
    job = parse(launch, options[1:] if named else options, verb="launch", about=about)
    if not verb:
        raise UsageError("nothing to launch", where="signllm launch", remedy=f"for example: {EXAMPLE}")
    check(verb)
    return job
