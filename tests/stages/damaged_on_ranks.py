"""``python -m tests.stages.damaged_on_ranks SHARDS MAX_BAD``: one rank reads shards with broken videos."""

from __future__ import annotations

import sys

from signllm.data.loading.pipeline import DataConfig, VideoSource
from signllm.data.shards.index import ShardIndex
from signllm.distributed.local_ranks import leave_process_group
from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.stages.batches import training_batches
from signllm.training.engine import TrainingConfig


def main() -> None:
    """Read until too many videos are broken, 15 batches at most; print one line of how far it came."""
    shards, max_bad = sys.argv[1:]
    ranks = start_distributed()
    source = VideoSource(
        ShardIndex(shards).split("train"), DataConfig(size=32, workers=0, max_bad=float(max_bad))
    )
    loader = training_batches(source, TrainingConfig(steps=5, batch_size=2), ranks)
    steps, real = 0, 0
    try:
        for batch in loader:
            steps, real = steps + 1, real + int(batch.is_real.sum())
            if steps == 15:
                break
        print(f"went on {steps} {real}")
    except UsageError as error:
        print(f"stopped {steps} {error.what}")
    leave_process_group()


if __name__ == "__main__":
    main()
