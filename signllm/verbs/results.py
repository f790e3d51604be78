"""The verbs that read a finished run or anybody's output: translations, scores, a report."""

from pathlib import Path
from typing import Annotated, Any

from signllm.command import Job, Verb, positional, prepare_job, print_result, run_on_ranks


def _evaluate(arguments: list[str]) -> Job:
    import tyro

    from signllm.evaluation.evaluate import EvaluateConfig

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
        """Evaluate.

        Args:
            run: the run folder of stage 3; hypotheses and scores go there.
            data: folder or address of shards; several as A,B: each video once, whatever the weights.
            split: which of its splits; choose on dev, report test once.
            ranks: processes on this machine that share the work.
            json: print JSON.
            config: how it is translated and scored.
        """
        from signllm.evaluation.evaluate import evaluate

        def work() -> None:
            found = evaluate(run, data, split, config)
            print_result(found if json else _brief(found), json=json)

        run_on_ranks("evaluate", arguments, ranks, work, folder=run)

    return prepare_job(evaluate, arguments, verb="evaluate", about=EVALUATE)


def _brief(scores: dict[str, Any]) -> dict[str, Any]:
    """Return what fits a screen; ``scores.S.json`` holds the rest."""
    from signllm.evaluation.scores import METRICS

    shown = (*METRICS, "covered", "samples", "signature")
    brief = {name: scores[name] for name in shown if name in scores}
    if "shuffled" in scores:
        brief["shuffled"] = {name: scores["shuffled"][name] for name in ("bleu4", "rouge_l")}
    return brief


def _score(arguments: list[str]) -> Job:
    import tyro

    from signllm.evaluation.score_files import format_score_table, score_files
    from signllm.evaluation.scores import RESAMPLES, ScoreConfig
    from signllm.evaluation.significance import Test

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
        """Scores.

        Args:
            hypotheses: a file of a system, or of each of its seeds: plain lines, id|text, a table or .jsonl.
            references: the same, in the same order or with the same ids; a table of PHOENIX-2014T or How2Sign
                will do.
            baseline: the same videos by another system: is the difference more than chance?
            test: paired bootstrap, or approximate randomization.
            bootstrap: resamples for 95 % intervals and the test; 0 leaves the intervals out.
            json: print JSON.
            config: by which rules.
        """
        found = score_files(hypotheses, references, config, baseline=baseline, test=test, bootstrap=bootstrap)
        print_result(found, json=True) if json else print(format_score_table(found))

    return prepare_job(score, arguments, verb="score", about=SCORE)


def _report(arguments: list[str]) -> Job:
    def report(*, run: Path, data: str | None = None, out: Path | None = None) -> None:
        """Report.

        Args:
            run: a run folder, or a folder that `signllm demo` wrote.
            data: folder or address of shards, or several as A,B: shows frames beside the tokens.
            out: the file, if not report.html in the run folder.
        """
        from signllm.evaluation.report import write_report

        print(write_report(run, shards=data, out=out))

    return prepare_job(report, arguments, verb="report", about=REPORT)


def _export(arguments: list[str]) -> Job:
    destination = positional(Path, "OUT")

    def export(out: destination, /, *, run: Path, best: bool = False, with_llm: bool = False) -> None:
        """Export.

        Args:
            out: folder to write; must not be there yet.
            run: the run folder of stage 3.
            best: the checkpoint of the best validated value instead of the last.
            with_llm: copy the frozen language model into it; else it is named.
        """
        from signllm.evaluation.export import export

        print(export(run, out, best=best, with_llm=with_llm))

    return prepare_job(export, arguments, verb="export", about=EXPORT)


EVALUATE = Verb(
    "translate a split and score it",
    "signllm evaluate --run runs/finetune --data shards --split dev --ranks 2",
    _evaluate,
)
EXPORT = Verb(
    "what a run has learnt as one folder for others, with a card",
    "signllm export my-model --run runs/finetune",
    _export,
)
SCORE = Verb(
    "BLEU, ROUGE-L and chrF of anybody's output, by a named convention",
    "signllm score --hypotheses out.txt --references ref.txt --convention phoenix2014t",
    _score,
)
REPORT = Verb("one HTML file about a run", "signllm report --run runs/finetune", _report)
