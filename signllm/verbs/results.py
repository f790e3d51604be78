"""The verbs that read a finished run or the output of any system: translations, scores, a report."""

from pathlib import Path
from typing import Annotated, Any

from signllm.command import Job, Verb, positional, prepare_job, print_result, run_on_ranks


def _evaluate(arguments: list[str]) -> Job:
    import tyro

    from signllm.inference.evaluate import EvaluateConfig

    settings, default = Annotated[EvaluateConfig, tyro.conf.arg(name="")], EvaluateConfig()

    def evaluate(
        *,
        run: Path,
        data: str,
        split: str = "dev",
        ranks: int = 1,
        json: bool = False,
        config: settings = default,
    ) -> None:
        """Translate a split with a run and score the translations.

        Args:
            run: run folder of stage 3, which receives hypotheses and scores.
            data: folder or address of shards. Several, written A,B, are evaluated together; weights have no
                effect.
            split: split to evaluate; choose a system on dev and report test once.
            ranks: processes on this machine that share the work.
            json: print the scores as JSON.
            config: how the videos are translated and scored.
        """
        from signllm.inference.evaluate import evaluate

        def work() -> None:
            scores = evaluate(run, data, split, config)
            print_result(scores if json else _brief(scores), json=json)

        run_on_ranks("evaluate", arguments, ranks, work, folder=run)

    return prepare_job(evaluate, arguments, verb="evaluate", about=EVALUATE)


def _brief(scores: dict[str, Any]) -> dict[str, Any]:
    """Return the main scores; ``scores.S.json`` contains all of them."""
    from signllm.metrics.scores import METRICS

    shown = (*METRICS, "covered", "samples", "signature")
    brief = {name: scores[name] for name in shown if name in scores}
    if "shuffled" in scores:
        brief["shuffled"] = {name: scores["shuffled"][name] for name in ("bleu4", "rouge_l")}
    return brief


def _score(arguments: list[str]) -> Job:
    import tyro

    from signllm.metrics.score_files import format_score_table, score_files
    from signllm.metrics.scores import ScoreConfig
    from signllm.metrics.significance import RESAMPLES, Test

    settings, default = Annotated[ScoreConfig, tyro.conf.arg(name="")], ScoreConfig()

    def score(
        *,
        hypotheses: tuple[Path, ...],
        references: Path,
        baseline: tuple[Path, ...] = (),
        test: Test = "bootstrap",
        bootstrap: int = RESAMPLES,
        json: bool = False,
        config: settings = default,
    ) -> None:
        """Score hypotheses against references.

        Args:
            hypotheses: hypotheses of a system, or one file for each of its seeds: plain lines, id|text, a
                table or .jsonl.
            references: references in the same order or with the same ids; may be a table of PHOENIX-2014T or
                How2Sign.
            baseline: hypotheses of another system for the same videos, for a test whether the difference is
                significant.
            test: paired bootstrap, or approximate randomization.
            bootstrap: resamples for 95 % intervals and for the test; 0 computes no intervals.
            json: print the scores as JSON.
            config: scoring rules.
        """
        scores = score_files(
            hypotheses, references, config, baseline=baseline, test=test, bootstrap=bootstrap
        )
        print_result(scores, json=True) if json else print(format_score_table(scores))

    return prepare_job(score, arguments, verb="score", about=SCORE)


def _report(arguments: list[str]) -> Job:
    def report(*, run: Path, data: str | None = None, out: Path | None = None) -> None:
        """Write a report about a run as one HTML file.

        Args:
            run: run folder, or a folder that `signllm demo` wrote.
            data: folder or address of shards, or several as A,B, to show frames next to the tokens.
            out: file to write; by default report.html in the run folder.
        """
        from signllm.reporting import write_report

        print(write_report(run, shards=data, out=out))

    return prepare_job(report, arguments, verb="report", about=REPORT)


def _export(arguments: list[str]) -> Job:
    destination = positional(Path, "OUT")

    def export(out: destination, /, *, run: Path, best: bool = False, with_llm: bool = False) -> None:
        """Export a run as a folder that others can load.

        Args:
            out: folder to write, which must not exist yet.
            run: run folder of stage 3.
            best: export the checkpoint with the best validated value instead of the last one.
            with_llm: copy the frozen language model into the folder; by default only its name is stored.
        """
        from signllm.inference.export import export

        print(export(run, out, best=best, with_llm=with_llm))

    return prepare_job(export, arguments, verb="export", about=EXPORT)


EVALUATE = Verb(
    "translate a split and score it",
    "signllm evaluate --run runs/finetune --data shards --split dev --ranks 2",
    _evaluate,
)
EXPORT = Verb(
    "export what a run has learnt as one folder with a model card",
    "signllm export my-model --run runs/finetune",
    _export,
)
SCORE = Verb(
    "score the output of any system: BLEU, ROUGE-L, chrF, by a named convention",
    "signllm score --hypotheses out.txt --references ref.txt --convention phoenix2014t",
    _score,
)
REPORT = Verb("write a report about a run as one HTML file", "signllm report --run runs/finetune", _report)
