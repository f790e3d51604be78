"""``signllm compare``: several runs next to each other."""

import json as json_format
import sys
from pathlib import Path

from signllm.command import Job, Verb, prepare_job
from signllm.errors import UsageError


def _compare(arguments: list[str]) -> Job:
    def compare(
        runs: tuple[Path, ...], /, *, split: str = "dev", out: Path | None = None, json: bool = False
    ) -> None:
        """Compare runs.

        Args:
            runs: run folders of stage 3 that were evaluated.
            split: split whose scores are compared; choose a system on dev and report test once.
            out: file for a comparison with a plot of BLEU-4 over the size of the language models: a page.html
                with the table, or a picture.png, .svg or .pdf.
            json: print the result as JSON.
        """
        from signllm.reporting.compare import align_columns, build_table_rows, compare_runs, list_warnings
        from signllm.reporting.compare_page import check_file_kind, write_comparison
        from signllm.validation import to_plain

        if not runs:
            raise UsageError(
                "no run was given", where="signllm compare RUN...", remedy="name one or more run folders"
            )
        if out is not None:
            check_file_kind(out)
        rows_of_runs = compare_runs(runs, split)
        if json:
            print(json_format.dumps([to_plain(run) for run in rows_of_runs], indent=2))
        else:
            print("\n".join(align_columns(build_table_rows(rows_of_runs), names=2)))
        for line in list_warnings(rows_of_runs):
            print(f"signllm: {line}", file=sys.stderr)
        if out is not None:
            write_comparison(rows_of_runs, split, out)
            print(out, file=sys.stderr)

    return prepare_job(compare, arguments, verb="compare", about=COMPARE)


COMPARE = Verb(
    "compare runs: scores, language models and their sizes, a plot",
    "signllm compare runs/scaling/* --split test --out scaling.html",
    _compare,
)
