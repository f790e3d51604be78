"""The verbs, in the order of a project: its name, its options, which room does the work.

Whatever a verb needs is imported inside it, so that listing the verbs costs nothing.
"""

import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from signllm.command import Job, Verb, named, parse, show, spread, whole
from signllm.errors import UsageError
from signllm.plain import to_plain


def _recipe(arguments: list[str]) -> tuple[Any, list[str]]:
    """Split the optional RECIPE off the arguments; without one, the paper's."""
    from signllm.recipes import find_recipe

    named = bool(arguments) and not arguments[0].startswith("-")
    return find_recipe(arguments[0] if named else "phoenix2014t"), arguments[1:] if named else arguments


def _shard(arguments: list[str]) -> Job:
    if arguments and arguments[0] in _SHARD_VERBS:
        return _SHARD_VERBS[arguments[0]](arguments[1:])
    import tyro

    from signllm.data.annotations import FORMATS
    from signllm.data.shards import ShardConfig

    settings, default = Annotated[ShardConfig, tyro.conf.arg(name="")], ShardConfig()

    def shard(
        format: named(str, "FORMAT"),
        src: named(Path, "SRC"),
        out: named(Path, "OUT"),
        /,
        *,
        json: bool = False,
        config: settings = default,
    ) -> None:
        """Shard.

        Args:
            format: how the dataset is laid out; or info, verify, preview to look at finished shards.
            src: the dataset: its folder, or the table.
            out: folder for the shards; finished ones there are kept.
            json: print JSON.
            config: how videos are stored.
        """
        from signllm.data.inspection import shards_info
        from signllm.data.shards import shard

        shard(format, src, out, config)
        show(shards_info(out), json=json)

    if arguments and not arguments[0].startswith("-") and arguments[0].replace("-", "_") not in FORMATS:
        near = difflib.get_close_matches(arguments[0], [*FORMATS, *_SHARD_VERBS], n=1)
        remedy = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"there is no shard format {arguments[0]!r}",
            where="signllm shard FORMAT SRC OUT",
            remedy=f"{remedy}formats: {', '.join(FORMATS)}; or {', '.join(_SHARD_VERBS)} OUT",
        )
    return parse(shard, arguments, verb="shard", about=VERBS["shard"])


def _shard_info(arguments: list[str]) -> Job:
    def info(out: named(Path, "OUT"), /, *, json: bool = False) -> None:
        """Info.

        Args:
            out: folder of shards.
            json: print JSON.
        """
        from signllm.data.inspection import shards_info

        show(shards_info(out), json=json)

    return parse(info, arguments, verb="shard info", about=VERBS["shard"])


def _shard_verify(arguments: list[str]) -> Job:
    def verify(out: named(Path, "OUT"), /, *, decode: bool = True, json: bool = False) -> None:
        """Verify.

        Args:
            out: folder of shards.
            decode: decode every video; without, only bytes and structure are checked.
            json: print JSON.
        """
        from signllm.data.inspection import shards_verify

        show(shards_verify(out, decode=decode, show_progress=True), json=json)

    return parse(verify, arguments, verb="shard verify", about=VERBS["shard"])


def _shard_preview(arguments: list[str]) -> Job:
    def preview(
        out: named(Path, "OUT"), png: named(Path, "PNG") = Path("preview.png"), /, *, samples: int = 12
    ) -> None:
        """Preview.

        Args:
            out: folder of shards.
            png: the picture to write.
            samples: rows, spread over the splits.
        """
        from signllm.data.inspection import shards_preview

        print(shards_preview(out, png, samples=samples))

    return parse(preview, arguments, verb="shard preview", about=VERBS["shard"])


_SHARD_VERBS = {"info": _shard_info, "verify": _shard_verify, "preview": _shard_preview}


def _pretrain(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import PretrainConfig

    recipe, options = _recipe(arguments)
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

        spread("pretrain", arguments, ranks, lambda: whole(pretrain(config, run=run, shards=data)))

    return parse(pretrain, options, verb="pretrain", about=VERBS["pretrain"])


def _compose(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import ComposeConfig

    recipe, options = _recipe(arguments)
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

        spread("compose", arguments, ranks, lambda: _tell_words(compose(run, data, config)))

    return parse(compose, options, verb="compose", about=VERBS["compose"])


def _tell_words(words: Any) -> None:
    show({"characters": words.codes, "words": len(words.words), "alpha": words.alpha}, json=False)


def _finetune(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import FinetuneConfig

    recipe, options = _recipe(arguments)
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

        spread("finetune", arguments, ranks, lambda: whole(finetune(config, run=run, init=init, shards=data)))

    return parse(finetune, options, verb="finetune", about=VERBS["finetune"])


def _evaluate(arguments: list[str]) -> Job:
    import tyro

    from signllm.evaluation.evaluate import EvaluateConfig

    settings, default = Annotated[EvaluateConfig, tyro.conf.arg(name="")], EvaluateConfig()

    def evaluate(
        *,
        run: Path,
        data: Path,
        split: str = "dev",
        ranks: int = 1,
        json: bool = False,
        config: settings = default,
    ) -> None:
        """Evaluate.

        Args:
            run: the run folder of stage 3; hypotheses and scores go there.
            data: folder of shards.
            split: which of its splits; choose on dev, report test once.
            ranks: processes on this machine that share the work.
            json: print JSON.
            config: how it is translated and scored.
        """
        from signllm.evaluation.evaluate import evaluate

        spread("evaluate", arguments, ranks, lambda: show(evaluate(run, data, split, config), json=json))

    return parse(evaluate, arguments, verb="evaluate", about=VERBS["evaluate"])


def _translate(arguments: list[str]) -> Job:
    def translate(
        videos: tuple[Path, ...], /, *, run: Path, language: str | None = None, json: bool = False
    ) -> None:
        """Translate.

        Args:
            videos: video files, or folders of frame pictures.
            run: the run folder of stage 3.
            language: of the text, in English, for the prompt.
            json: print JSON: text, characters and words of every video.
        """
        from signllm.evaluation.translate import load

        if not videos:
            raise UsageError(
                "no video", where="signllm translate VIDEO...", remedy="name one video file or more"
            )
        translator = load(run)
        found = {str(video): translator.translate(video, language) for video in videos}
        show({name: to_plain(t) if json else t.text for name, t in found.items()}, json=json)

    return parse(translate, arguments, verb="translate", about=VERBS["translate"])


def _score(arguments: list[str]) -> Job:
    from signllm.evaluation.scores import FinalPeriod, score_files

    def score(
        *,
        hypotheses: Path,
        references: Path,
        convention: str = "phoenix2014t",
        final_period: FinalPeriod = "keep",
        language: str | None = None,
        json: bool = False,
    ) -> None:
        """Scores.

        Args:
            hypotheses: one sentence per line, or `id|text`.
            references: the same, in the same order or with the same ids.
            convention: phoenix2014t, csl-daily or sacrebleu: how text is cut into words.
            final_period: what happens to a sentence's last period on both sides.
            language: for sacrebleu: zh for Chinese.
            json: print JSON.
        """
        found = score_files(hypotheses, references, convention, language=language, final_period=final_period)
        show(found, json=json)

    return parse(score, arguments, verb="score", about=VERBS["score"])


def _report(arguments: list[str]) -> Job:
    def report(*, run: Path, data: Path | None = None) -> None:
        """Report.

        Args:
            run: a run folder, or a folder that `signllm demo` wrote.
            data: folder of shards: shows frames beside the tokens.
        """
        from signllm.evaluation.report import report

        print(report(run, shards=data))

    return parse(report, arguments, verb="report", about=VERBS["report"])


def _launch(arguments: list[str]) -> Job:
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
        from signllm.cli import run

        job = launch.launch(profile, verb, run=run, logs=logs)
        print(f"job {job.job_id}: {job.paths.stdout}")
        if profile.executor == "local":
            print(launch.wait(job), end="")

    job = parse(launch, options[1:] if named else options, verb="launch", about=VERBS["launch"])
    if not verb:
        raise UsageError(
            "nothing to launch", where="signllm launch", remedy=f"for example: {VERBS['launch'].example}"
        )
    prepare(verb)
    return job


VERBS: dict[str, Verb] = {
    "shard": Verb(
        "a dataset into shards; `shard info|verify|preview OUT` look at them",
        "signllm shard phoenix2014t PHOENIX-2014-T-release-v3/PHOENIX-2014-T shards",
        _shard,
    ),
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
    "evaluate": Verb(
        "translate a split and score it",
        "signllm evaluate --run runs/finetune --data shards --split dev --ranks 2",
        _evaluate,
    ),
    "translate": Verb(
        "text for any video file", "signllm translate --run runs/finetune video.mp4", _translate
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
    lines += [
        "`signllm VERB --help` lists a verb's options. Exit code: 0 done, 1 failed, 2 bad usage or bad input."
    ]
    return "\n".join(lines)


def _print_version() -> None:
    from signllm import __version__

    print(f"signllm {__version__}")
