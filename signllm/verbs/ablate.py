"""``signllm ablate``: train a recipe without each of its parts, and compare the scores in a table."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from signllm.command import Job, Verb, prepare_job, print_result, run_on_ranks
from signllm.distributed.local_ranks import StoppedEarlyError, is_first_rank, run_local_ranks
from signllm.errors import RunFailedError, UsageError
from signllm.verbs.stages import named_recipe

if TYPE_CHECKING:
    from signllm.config import Recipe
    from signllm.experiments.ablation_cells import Study

SUMMARY = "train a recipe without each of its parts over several seeds; one table, one figure"
EXAMPLE = "signllm ablate phoenix2014t --data shards --llm llama-7b --out runs/ablations --seeds 0..2"
ON_SLURM = (
    "signllm launch a100 --array only=full,no_vq,no_mmd seed=0..2 -- ablate phoenix2014t "
    "--data shards --llm llama-7b --out runs/ablations --only {only} --seeds {seed}"
)
TABLE = "signllm ablate table runs/ablations --split dev"


def _ablate(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import Recipe
    from signllm.experiments.ablations import ABLATIONS, ablation_title

    if arguments[:1] == ["table"]:
        return _table(arguments[1:])
    _, recipe, options = named_recipe(arguments)
    config_option = Annotated[Path | None, tyro.conf.arg(name="config")]
    settings = Annotated[Recipe, tyro.conf.arg(name="")]

    def ablate(
        *,
        data: str,
        out: Path,
        llm: str | None = None,
        encoder_decoder_llm: str | None = None,
        only: tuple[str, ...] = (),
        seeds: str = "0..2",
        split: str = "dev",
        ranks: int = 1,
        json: bool = False,
        config: settings = recipe,
        config_file: config_option = None,
    ) -> None:
        """Train the ablations of a recipe.

        Args:
            data: folder or address of shards, or a mixture, as for stage 1.
            out: folder of all runs, OUT/NAME/seed-S, and of the table; finished runs in it are kept.
            llm: folder or name of the language model; short for --finetune.sign-llm.language-model.path.
            encoder_decoder_llm: an encoder-decoder model, for the ablation encoder_decoder.
            only: names of the ablations to train; by default all that are possible.
            seeds: training seeds, a,b,c or a..b.
            split: split that is translated and scored; choose on dev and report test once.
            ranks: processes on this machine that share the work.
            json: print the table as JSON.
            config: settings of the full recipe; each can be changed.
            config_file: file whose settings replace those of the recipe: config.json of a run, whose stage
                it replaces, or TOML. Options override it.
        """
        from signllm.cluster.sweep import values_of
        from signllm.data.split_names import standardize_split
        from signllm.experiments.ablation_cells import Study
        from signllm.experiments.ablations import AblationInputs, select_ablations

        split = standardize_split(split)
        inputs = AblationInputs(encoder_decoder_llm=encoder_decoder_llm)
        names = select_ablations(only, inputs)
        config = _with_llm(config, llm)
        study = Study(out=out, recipe=config, shards=data, split=split, inputs=inputs)
        cells = [(name, _number(seed)) for seed in values_of(seeds) for name in names]
        for cell in cells:
            study.check_recorded_settings(*cell)
        if "WORLD_SIZE" in os.environ:  # a rank of a job
            run_on_ranks("ablate", arguments, ranks, lambda: _run(study, cells), folder=out)
            return
        _run_apart(study, cells, arguments, ranks)
        _show(out, split, json=json)

    listed = "\n".join(f"  {name:<16} {ablation_title(name)}" for name in ABLATIONS)
    about = Verb(SUMMARY, f"{EXAMPLE}\n\n{ON_SLURM}\n\n{TABLE}\n\nAblations:\n{listed}", _ablate)
    return prepare_job(ablate, options, verb="ablate", about=about)


def _with_llm(config: "Recipe", llm: str | None) -> "Recipe":
    import dataclasses

    return dataclasses.replace(config, finetune=config.finetune.with_llm(llm))


def _number(seed: str) -> int:
    if not seed.isdecimal():
        raise UsageError(f"{seed!r} is not a seed", where="--seeds", remedy="give integers: 0..2 or 0,1,7")
    return int(seed)


def _run(study: "Study", cells: Sequence[tuple[str, int]]) -> None:
    """Train cells one after the other on the ranks of this job."""
    from signllm.experiments.ablation_cells import run_cell
    from signllm.experiments.ablation_files import write_table_files
    from signllm.experiments.ablation_table import read_ablation_table

    for name, seed in cells:
        run_cell(study, name, seed)
    if is_first_rank():
        write_table_files(read_ablation_table(study.out, study.split), study.out)


def _run_apart(
    study: "Study", cells: Sequence[tuple[str, int]], arguments: Sequence[str], ranks: int
) -> None:
    """Train each cell in processes of its own, so that a failure of one does not end the others.

    Raises:
        RunFailedError: cells failed; the message names each, after all were tried.
    """
    unfinished = [cell for cell in cells if not study.is_done(*cell)]
    failed: list[str] = []
    for place, (name, seed) in enumerate(unfinished, 1):
        print(f"ablation {place} of {len(unfinished)}: {name}, seed {seed}", file=sys.stderr, flush=True)
        try:
            run_local_ranks(["ablate", *_for_cell(arguments, name, seed)], ranks=ranks)
        except StoppedEarlyError:
            raise
        except (RunFailedError, UsageError) as error:
            print(f"signllm: {name}, seed {seed}: {error}", file=sys.stderr, flush=True)
            failed.append(f"{name}, seed {seed}")
    if failed:
        raise RunFailedError(
            f"{len(failed)} of {len(cells)} ablations failed (above): {'; '.join(failed)}\n  remedy: correct "
            f"them and give the same command again; table of the others: signllm ablate table {study.out} "
            f"--split {study.split}"
        )


def _for_cell(arguments: Sequence[str], name: str, seed: int) -> list[str]:
    """Return the command line of one cell; if an option is repeated, the last one counts."""
    return [*arguments, "--only", name, "--seeds", str(seed)]


def _show(out: Path, split: str, *, json: bool) -> None:
    from signllm.experiments.ablation_files import format_table, write_table_files
    from signllm.experiments.ablation_table import read_ablation_table
    from signllm.validation import to_plain

    table = read_ablation_table(out, split)
    page = write_table_files(table, out)
    print_result(to_plain(table), json=True) if json else print(format_table(table))
    print(page, file=sys.stderr)


def _table(arguments: list[str]) -> Job:
    from signllm.command import positional

    folder = positional(Path, "OUT")

    def table(out: folder, /, *, split: str = "dev", json: bool = False) -> None:
        """Print the table of ablations that were scored so far.

        Args:
            out: folder that `signllm ablate --out` wrote.
            split: split whose scores are shown.
            json: print the table as JSON.
        """
        _show(out, split, json=json)

    about = Verb("print the table of the ablations that were scored so far", TABLE, _table)
    return prepare_job(table, arguments, verb="ablate table", about=about)


ABLATE = Verb(SUMMARY, EXAMPLE, _ablate)
