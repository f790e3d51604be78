"""The verb that sets runs side by side."""

import json as json_format
import sys
from pathlib import Path

from signllm.command import Job, Verb, prepare_job
from signllm.errors import UsageError
from signllm.plain import to_plain


def _compare(arguments: list[str]) -> Job:
    def compare(
        runs: tuple[Path, ...], /, *, split: str = "dev", out: Path | None = None, json: bool = False
    ) -> None:
        """Compare.

        Args:
            runs: run folders of stage 3 that were evaluated.
            split: whose scores; choose on dev, report test once.
            out: also draw BLEU-4 over the size of the language models: a page.html with the table, or a
                picture.png, .svg, .pdf.
            json: print JSON.
        """
        from signllm.evaluation.compare import align_columns, compare_runs, list_warnings, table_rows
        from signllm.evaluation.compare_page import check_file_kind, write_comparison

        if not runs:
            raise UsageError("no run", where="signllm compare RUN...", remedy="name one run folder or more")
        if out is not None:
            check_file_kind(out)
        found = compare_runs(runs, split)
        if json:
            print(json_format.dumps([to_plain(one) for one in found], indent=2))
        else:
            print("\n".join(align_columns(table_rows(found), names=2)))
        for line in list_warnings(found):
            print(f"signllm: {line}", file=sys.stderr)
        if out is not None:
            write_comparison(found, split, out)
            print(out, file=sys.stderr)

    return prepare_job(compare, arguments, verb="compare", about=COMPARE)


COMPARE = Verb(
    "runs side by side: scores, language models and their sizes, a plot",
    "signllm compare runs/scaling/* --split test --out scaling.html",
    _compare,
)
