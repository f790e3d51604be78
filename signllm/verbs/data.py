"""``signllm shard``: a dataset into shards, and three ways to look at shards."""

import difflib
from pathlib import Path
from typing import Annotated

from signllm.command import Job, Verb, named, parse, show
from signllm.errors import UsageError


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
    return parse(shard, arguments, verb="shard", about=SHARD)


def _shard_info(arguments: list[str]) -> Job:
    def info(out: named(Path, "OUT"), /, *, json: bool = False) -> None:
        """Info.

        Args:
            out: folder of shards.
            json: print JSON.
        """
        from signllm.data.inspection import shards_info

        show(shards_info(out), json=json)

    return parse(info, arguments, verb="shard info", about=SHARD)


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

    return parse(verify, arguments, verb="shard verify", about=SHARD)


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

    return parse(preview, arguments, verb="shard preview", about=SHARD)


_SHARD_VERBS = {"info": _shard_info, "verify": _shard_verify, "preview": _shard_preview}


SHARD = Verb(
    "a dataset into shards; `shard info|verify|preview OUT` look at them",
    "signllm shard phoenix2014t PHOENIX-2014-T-release-v3/PHOENIX-2014-T shards",
    _shard,
)
