"""``signllm shard`` converts a dataset into shards; ``signllm shards`` inspects them in three ways."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from signllm.command import Job, Verb, positional, prepare_job, print_result
from signllm.errors import UsageError

if TYPE_CHECKING:
    from signllm.data.shards.slices import Slice
    from signllm.data.source_samples import Annotations


def _shard(arguments: list[str]) -> Job:
    import tyro

    from signllm.data.annotations import FORMATS, read_annotations
    from signllm.data.shards.writing import ShardConfig

    settings, default = Annotated[ShardConfig, tyro.conf.arg(name="")], ShardConfig()

    def shard(
        format: positional(str, "FORMAT"),
        src: positional(Path, "SRC"),
        out: positional(Path, "OUT"),
        /,
        *,
        slice: str | None = None,
        merge: int | None = None,
        json: bool = False,
        config: settings = default,
    ) -> None:
        """Convert a dataset into shards.

        Args:
            format: format of the dataset: phoenix2014t, csl-daily, how2sign, openasl, table or folder.
            src: the dataset's folder, or the table.
            out: folder for the shards; finished ones in it are kept.
            slice: write only slice i of n, given as i/n, so that many jobs can share the work.
            merge: merge n finished slices; the result equals that of one run without slices.
            json: print the result as JSON.
            config: how videos are stored.
        """
        from signllm.data.shards.slices import merge_slices, parse_slice, write_slice
        from signllm.data.shards.writing import format_warnings, write_shards

        part = parse_slice(slice) if slice else None
        annotations = read_annotations(format, src)
        if part:
            manifest = write_slice(annotations, out, part, config)
        elif merge:
            manifest = merge_slices(annotations, out, merge, config)
        else:
            manifest = write_shards(annotations, out, config)
        for line in format_warnings(manifest):
            print(line, file=sys.stderr)
        if part:
            print(f"slice {part.number} of {part.count} is finished; after all: --merge {part.count}")
        else:
            _show_info(out, json=json)

    _refuse_unknown(arguments, FORMATS, "shard format", usage="signllm shard FORMAT SRC OUT")
    return prepare_job(shard, arguments, verb="shard", about=SHARD)


def check_shard(arguments: list[str]) -> tuple["Annotations", functools.partial[None]]:
    """Read the dataset of ``signllm shard ARGUMENTS``; return its annotations and the parsed verb.

    Raises:
        UsageError: the dataset cannot be read, or the options do not fit it.
    """
    from signllm.data.annotations import read_annotations
    from signllm.data.shards.writing import prepare_annotations

    job = _shard(arguments)
    assert isinstance(job, functools.partial)
    annotations = read_annotations(*job.args[:2])
    prepare_annotations(annotations, job.keywords["config"])
    return annotations, job


def split_shard(arguments: list[str], count: int) -> tuple[int, tuple["Slice", ...]]:
    """Return the number of slices of ``signllm shard ARGUMENTS``, and the slices that are unfinished.

    The number is ``count``, or the number of clips if that is smaller.

    Raises:
        UsageError: as in :func:`check_shard`, or the arguments already name a slice.
    """
    from signllm.data.shards.slices import unfinished_slices

    annotations, job = check_shard(arguments)
    if job.keywords["slice"] or job.keywords["merge"]:
        raise UsageError(
            f"{count} jobs are launched, which get their slices automatically",
            where="--slice or --merge",
            remedy="leave the option out, or launch one job: --nodes 1 and no --array",
        )
    count = max(1, min(count, len(annotations.samples)))
    return count, unfinished_slices(annotations, job.args[2], count, job.keywords["config"])


def _show_info(shards: Path | str, *, json: bool) -> None:
    from signllm.data.shards.shard_inspection import format_info_table, summarize_shards

    information = summarize_shards(shards)
    if json:
        print_result(information, json=True)
    else:
        print(format_info_table(information))


def _shards(arguments: list[str]) -> Job:
    _refuse_unknown(arguments, _COMMANDS, "command of shards", usage="signllm shards info|verify|preview OUT")
    if not arguments or arguments[0].startswith("-"):
        return functools.partial(print, _shards_help())
    return _COMMANDS[arguments[0]](arguments[1:])


def _refuse_unknown(arguments: list[str], names: Iterable[str], kind: str, *, usage: str) -> None:
    """Refuse a first argument that is none of ``names``; options and --help are left to the parser."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        near = difflib.get_close_matches(arguments[0], [*names], n=1)
        remedy = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"there is no {kind} {arguments[0]!r}", where=usage, remedy=f"{remedy}one of {', '.join(names)}"
        )


def _shards_help() -> str:
    """Return the text of ``signllm shards --help``."""
    lines = ["usage: signllm shards info|verify|preview OUT", "", SHARDS.summary, ""]
    lines += ["OUT is a folder, or an address that fsspec can open, such as https://host/shards.", ""]
    lines += [
        "  info     print hours, signers and texts of every split, and what splits have in common",
        "  verify   check every byte and decode every video",
        "  preview  write a contact sheet as PNG",
        "",
        f"Example: {SHARDS.example}",
    ]
    return "\n".join(lines)


def _info(arguments: list[str]) -> Job:
    def info(out: positional(str, "OUT"), /, *, json: bool = False) -> None:
        """Print a summary of shards.

        Args:
            out: folder or address of shards.
            json: print the result as JSON.
        """
        _show_info(out, json=json)

    return prepare_job(info, arguments, verb="shards info", about=SHARDS)


def _verify(arguments: list[str]) -> Job:
    def verify(
        out: positional(str, "OUT"), /, *, decode: bool = True, workers: int = 1, json: bool = False
    ) -> None:
        """Check shards completely.

        Args:
            out: folder or address of shards.
            decode: decode every video; otherwise only bytes and structure are checked.
            workers: processes that check; each downloads a complete shard at a time from an address, into
                TMPDIR.
            json: print the result as JSON.
        """
        from signllm.data.shards.shard_inspection import verify_shards

        print_result(verify_shards(out, decode=decode, workers=workers, show_progress=True), json=json)

    return prepare_job(verify, arguments, verb="shards verify", about=SHARDS)


def _preview(arguments: list[str]) -> Job:
    def preview(
        out: positional(str, "OUT"),
        png: positional(Path, "PNG") = Path("preview.png"),
        /,
        *,
        samples: int = 12,
    ) -> None:
        """Write a contact sheet of samples.

        Args:
            out: folder or address of shards.
            png: image file to write.
            samples: number of samples, spread over the splits.
        """
        from signllm.data.shards.preview import preview_shards

        print(preview_shards(out, png, samples=samples))

    return prepare_job(preview, arguments, verb="shards preview", about=SHARDS)


_COMMANDS: dict[str, Callable[[list[str]], Job]] = {"info": _info, "verify": _verify, "preview": _preview}

SHARD = Verb(
    "convert a dataset into shards",
    "signllm shard phoenix2014t PHOENIX-2014-T-release-v3/PHOENIX-2014-T shards",
    _shard,
)
SHARDS = Verb(
    "inspect shards: info, verify or preview",
    "signllm shards verify shards",
    _shards,
)
