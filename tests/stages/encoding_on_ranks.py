"""Shards encoded on one rank or several, each a process.

``python -m tests.stages.encoding_on_ranks FOLDER`` with RANK and WORLD_SIZE set is one of them.
FOLDER/SCENARIO holds shards; each rank leaves in FOLDER/of-W/SCENARIO the shards that it was given to write,
the videos that it read and how it failed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from signllm.data.loading.pipeline import DataConfig, VideoSource
from signllm.data.shards.index import ShardIndex
from signllm.distributed.ranks import Ranks
from signllm.errors import RunFailedError, UsageError
from signllm.models.vq_sign.vq_sign import VQSign
from signllm.stages.encoding import encode_shards
from tests import warm
from tests.models import parts

LENGTHS = (41, 13, 29, 37, 13, 33, 45)
BATCH = 2
MAX_BAD = 0.2
BROKEN = "broken"
"""The scenario in which the last rank runs out of memory."""


def encode_on_ranks(folder: Path, world: int) -> Path:
    """Encode every scenario of a folder in ``world`` processes; return what they left."""
    done = warm.run_ranks("tests.stages.encoding_on_ranks", str(folder), ranks=world)
    assert not any(done.codes), done.stderr[-4000:]
    return folder / f"of-{world}"


def encoder() -> VQSign:
    """A random encoder, whose codes are vectors of videos like these: so all are in use."""
    vq_sign, batch = parts.vq_sign().eval(), parts.batch_of(lengths=LENGTHS)
    codebook = vq_sign.quantizer.codebook
    with torch.no_grad():
        z, _ = vq_sign.encoder(batch.frames, batch.frame_counts)
        codebook.copy_(z[torch.linspace(0, len(z) - 1, len(codebook)).long()])
    return vq_sign


def main() -> None:
    folder = Path(sys.argv[1])
    ranks = Ranks(
        rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"]), device=torch.device("cpu")
    )
    store = f"file://{folder}/store-of-{ranks.world}"
    dist.init_process_group("gloo", rank=ranks.rank, world_size=ranks.world, init_method=store)
    for scenario in sorted(path.parent.name for path in folder.glob("*/manifest.json")):
        encode(folder / scenario, folder / f"of-{ranks.world}" / scenario, ranks)
    dist.destroy_process_group()


def encode(shards: Path, out: Path, ranks: Ranks) -> None:
    """Encode one scenario as one rank of all."""
    out.mkdir(parents=True, exist_ok=True)
    split, vq_sign = ShardIndex(shards).split("train"), encoder()
    read: list[str] = []
    load = VideoSource.load

    def recorded(source: VideoSource, index: int, **where: int) -> object:
        read.append(source.split.samples[index].id)
        if shards.name == BROKEN and ranks.rank == ranks.world - 1:
            raise RuntimeError("out of memory")
        return load(source, index, **where)

    def write(shard: int, characters: dict[str, np.ndarray]) -> None:
        text = json.dumps({id: sequence.tolist() for id, sequence in characters.items()})
        (out / f"shard-{shard}.json").write_text(text)

    VideoSource.load = recorded  # type: ignore[assignment,method-assign]
    failure = ""
    try:
        encode_shards(
            vq_sign,
            split,
            range(len(split.tars)),
            write,
            data=DataConfig(size=parts.SIZE, workers=0, max_bad=MAX_BAD),
            ranks=ranks,
            batch_size=BATCH,
        )
    except (UsageError, RunFailedError, RuntimeError) as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        VideoSource.load = load  # type: ignore[method-assign]
    (out / f"rank-{ranks.rank}.json").write_text(json.dumps({"read": read, "failure": failure}))


if __name__ == "__main__":
    main()
