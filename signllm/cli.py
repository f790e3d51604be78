"""The door: ``signllm VERB ...``. Finds the verb, parses its options, runs it, turns what went wrong into an exit code.

Every verb is a function whose parameters are its options (tyro reads their types and this file's docstrings); what it
needs is imported inside, so ``signllm --help`` answers without torch. Exit 0 done, 1 failed, 2 bad usage or input.
"""

import difflib
import functools
import json as json_format
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from signllm.errors import UsageError
from signllm.training.local_ranks import (
    FAILED,
    USAGE,
    RankFailedError,
    is_first_rank,
    report_failure,
    run_local_ranks,
)

Job = Callable[[], None]
"""A verb with its options filled in, ready to run."""


@dataclass(frozen=True)
class Verb:
    """One word of the command line.

    Attributes:
        summary: its line in ``signllm --help``.
        example: a line that works.
        prepare: takes the arguments after the verb, checks them, returns what runs.
    """

    summary: str
    example: str
    prepare: Callable[[list[str]], Job]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure becomes one message."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
        return 0
    except UsageError as error:
        return _fail(error, f"signllm: {error}", USAGE)
    except RankFailedError as error:
        return _fail(error, f"signllm: {error}", FAILED)
    except OSError as error:
        where = f"\n  where:  {error.filename}" if error.filename else ""
        return _fail(error, f"signllm: {error.strerror or error}{where}{_disk_remedy(error)}", FAILED)
    except KeyboardInterrupt as error:
        return _fail(error, "signllm: interrupted; the same command continues a run", FAILED)
    except Exception as error:
        return _fail(error, f"signllm: this is a fault of ours\n{traceback.format_exc()}", FAILED)


def run(arguments: Sequence[str]) -> None:
    """Run one verb, letting its errors through: what a rank of a submitted job calls."""
    if not is_first_rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # rank 0 speaks for all, to the end of the process
    prepare(arguments)()


def prepare(arguments: Sequence[str]) -> Job:
    """Check a whole command line and return what runs it.

    Raises:
        UsageError: there is no such verb; names the nearest.
    """
    word, *rest = arguments or ["--help"]
    if word in ("-h", "--help", "help"):
        return functools.partial(print, overview())
    if word == "--version":
        return _print_version
    if word not in VERBS:
        near = difflib.get_close_matches(word, VERBS, n=1)
        raise UsageError(
            f"there is no verb {word!r}",
            where="signllm VERB",
            remedy=f"did you mean `signllm {near[0]}`?" if near else f"one of {', '.join(VERBS)}",
        )
    return VERBS[word].prepare(rest)


def overview() -> str:
    """Return what ``signllm --help`` prints: the verbs in the order of a project."""
    from signllm import __doc__ as about

    lines = [(about or "").split("\n", 1)[0], "", "usage: signllm VERB ...", ""]
    lines += [f"  {name:<10} {verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "Examples:", *(f"  {verb.example}" for verb in VERBS.values()), ""]
    lines += ["`signllm VERB --help` lists a verb's options. Exit code: 0 done, 1 failed, 2 bad usage or bad input."]
    return "\n".join(lines)


def _print_version() -> None:
    from signllm import __version__

    print(f"signllm {__version__}")


def _fail(error: BaseException, message: str, code: int) -> int:
    """Hand the message to whoever started this rank, or print it, and return the exit code."""
    if not report_failure(error, message.removeprefix("signllm: ")):
        print(message, file=sys.stderr)
    return code


def _disk_remedy(error: OSError) -> str:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "\n  remedy: free some space and run the same command again; nothing unfinished is taken for finished"
    return ""


def _parse(function: Callable[..., None], arguments: list[str], verb: str) -> Job:
    """Fill a verb's options from ``arguments`` (tyro prints what is wrong and exits 2) and return it ready to run."""
    import tyro

    @functools.wraps(function)
    def fill(*given: Any, **named: Any) -> Job:
        return functools.partial(function, *given, **named)

    word = verb.split(" ")[0]
    text = f"{VERBS[word].summary}\n\nExample: {VERBS[word].example}"
    if not is_first_rank() and "--help" in arguments:
        raise SystemExit(0)
    flags = (tyro.conf.FlagCreatePairsOff,)
    job: Job = tyro.cli(fill, args=arguments, prog=f"signllm {verb}", description=text, config=flags)
    return job


def _show(record: dict[str, Any], *, json: bool) -> None:
    """Print a result on standard output: aligned lines, or JSON for programs."""
    if json:
        print(json_format.dumps(record, indent=2, default=str))
        return
    flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
    width = max(map(len, flat), default=0)
    for key, value in flat.items():
        print(f"{key:<{width}}  {f'{value:.2f}' if isinstance(value, float) else value}")


def _spread(verb: str, arguments: list[str], ranks: int, alone: Job) -> None:
    """Run ``alone`` here, or the same command line on ``ranks`` ranks of this machine unless this already is one."""
    if ranks == 1 or "WORLD_SIZE" in os.environ:
        alone()
    else:
        run_local_ranks([verb, *arguments], ranks=ranks)


def _recipe(arguments: list[str], verb: str) -> tuple[Any, list[str]]:
    """Split the optional RECIPE off the arguments; without one, the paper's."""
    from signllm.recipes import find_recipe

    named = bool(arguments) and not arguments[0].startswith("-")
    return find_recipe(arguments[0] if named else "phoenix2014t"), arguments[1:] if named else arguments


def _pretrain(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import PretrainConfig

    recipe, options = _recipe(arguments, "pretrain")
    settings = Annotated[PretrainConfig, tyro.conf.arg(name="")]

    def pretrain(*, run: Path, data: Path, ranks: int = 1, config: settings = recipe.pretrain) -> None:
        """Stage 1.

        Args:
            run: the run folder; an unfinished run there is continued.
            data: folder of shards.
            ranks: processes on this machine that share the work.
            config: settings of the recipe, each can be changed.
        """
        from signllm.stages.pretrain import pretrain

        _spread("pretrain", arguments, ranks, lambda: pretrain(config, run=run, shards=data))

    return _parse(pretrain, options, "pretrain")


def _compose(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import ComposeConfig

    recipe, options = _recipe(arguments, "compose")
    settings = Annotated[ComposeConfig, tyro.conf.arg(name="")]

    def compose(*, run: Path, data: Path, ranks: int = 1, config: settings = recipe.compose) -> None:
        """Stage 2.

        Args:
            run: the run folder that `signllm pretrain` wrote; the words go there.
            data: folder of shards.
            ranks: processes on this machine that share the work.
            config: settings of the recipe, each can be changed.
        """
        from signllm.stages.compose import compose

        _spread("compose", arguments, ranks, lambda: compose(run, data, config))

    return _parse(compose, options, "compose")


def _finetune(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import FinetuneConfig

    recipe, options = _recipe(arguments, "finetune")
    settings = Annotated[FinetuneConfig, tyro.conf.arg(name="")]

    def finetune(
        *, run: Path, init: Path, data: Path, ranks: int = 1, config: settings = recipe.finetune
    ) -> None:
        """Stage 3.

        Args:
            run: the run folder; an unfinished run there is continued.
            init: the run folder of stages 1 and 2: its encoder and its words.
            data: folder of shards.
            ranks: processes on this machine that share the work.
            config: settings of the recipe, each can be changed.
        """
        from signllm.stages.finetune import finetune

        _spread("finetune", arguments, ranks, lambda: finetune(config, run=run, init=init, shards=data))

    return _parse(finetune, options, "finetune")


def _score(arguments: list[str]) -> Job:
    def score(
        *, hypotheses: Path, references: Path, convention: str = "phoenix2014t", json: bool = False
    ) -> None:
        """Scores.

        Args:
            hypotheses: one sentence per line, or `id|text`.
            references: the same, in the same order or with the same ids.
            convention: phoenix2014t, csl-daily or sacrebleu: how text is cut into words.
            json: print JSON.
        """
        from signllm.evaluation.scores import score
        from signllm.evaluation.sentences import paired

        _show(score(*paired(hypotheses, references), convention), json=json)

    return _parse(score, arguments, "score")


def _report(arguments: list[str]) -> Job:
    def report(*, run: Path) -> None:
        """Report.

        Args:
            run: a run folder.
        """
        from signllm.evaluation.report import write_report

        print(write_report(run))

    return _parse(report, arguments, "report")


def _launch(arguments: list[str]) -> Job:
    import tyro

    from signllm.cluster.profile import Profile, load_profile

    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, verb = arguments[:cut], arguments[cut + 1 :]
    named = bool(options) and not options[0].startswith("-")
    resources = Annotated[Profile, tyro.conf.arg(name="")]
    profile = load_profile(options[0] if named else "local")

    def launch(*, dry_run: bool = False, logs: Path = Path("runs/jobs"), profile: resources = profile) -> None:
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
        job = launch.launch(profile, verb, logs=logs)
        print(f"job {job.job_id}: {job.paths.stdout}")
        if profile.executor == "local":
            launch.wait(job)

    job = _parse(launch, options[1:] if named else options, "launch")
    if not verb:
        raise UsageError("nothing to launch", where="signllm launch", remedy=f"for example: {VERBS['launch'].example}")
    prepare(verb)
    return job


VERBS: dict[str, Verb] = {
    "pretrain": Verb(
        "stage 1: learn characters from video (VQ-Sign)",
        "signllm pretrain phoenix2014t --data shards --run runs/pretrain --ranks 2",
        _pretrain,
    ),
    "compose": Verb(
        "stage 2: compose characters into words (CRA)",
        "signllm compose phoenix2014t --data shards --run runs/pretrain",
        _compose,
    ),
    "finetune": Verb(
        "stage 3: align the words with a frozen LLM",
        "signllm finetune phoenix2014t --init runs/pretrain --data shards --run runs/finetune",
        _finetune,
    ),
    "score": Verb(
        "BLEU, ROUGE-L and chrF of anybody's output, by a named convention",
        "signllm score --hypotheses out.txt --references ref.txt --convention phoenix2014t",
        _score,
    ),
    "report": Verb("one HTML file about a run", "signllm report --run runs/finetune", _report),
    "launch": Verb(
        "the same verb as a job, on Slurm or here",
        "signllm launch local --dry-run -- pretrain phoenix2014t --data shards --run runs/pretrain",
        _launch,
    ),
}
