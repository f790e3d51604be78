"""What all stages need before ``fit()``: their context, and the batches of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from signllm.data.loading.mixture import Mixture
from signllm.data.loading.pipeline import Agree, Loader, Readiness
from signllm.data.loading.sample_source import SampleSource
from signllm.distributed.agreement import gather_objects
from signllm.distributed.preemption import preemption_flag, stopped_early_error
from signllm.distributed.ranks import Ranks
from signllm.distributed.watchdog import record_progress
from signllm.training.callbacks import RunContext
from signllm.training.engine import TrainingConfig

TRAIN, DEV = "train", "dev"


@dataclass(frozen=True, kw_only=True)
class StageContext(RunContext):
    """Where a stage runs and what it learns from: run folder, stage, ranks and dataset.

    Attributes:
        dataset: the shards that ``--data`` names, opened once by the verb.
    """

    dataset: Mixture


def training_batches(source: SampleSource, training: TrainingConfig, ranks: Ranks) -> Loader:
    """Return this rank's shuffled, endless batches for ``fit()``."""
    return Loader(
        source,
        batch_size=training.videos_per_forward,
        rank=ranks.rank,
        world=ranks.world,
        seed=training.seed,
        agree=make_batch_agreement(ranks),
    )


def make_batch_agreement(ranks: Ranks) -> Agree:
    """Return a function with which all ranks accept their next batch, or none if one lacks it.

    It costs one small all-reduce per batch; texts are exchanged only if there are any. A rank whose batch is
    late takes part once a second, so the others never wait long inside one collective: waiting for storage is
    not taken for a hang, and a preempted job stops at once, in the state before the batch.
    """

    def agree(own: Readiness) -> Readiness:
        with preemption_flag() as flag:
            requested = flag.requested
        facts: list[int] = [not own.ready, own.waits, own.failure is not None, len(own.bad), requested]
        if ranks.world > 1:
            summed = torch.tensor(facts, dtype=torch.int64, device=ranks.device)
            dist.all_reduce(summed)
            facts = summed.tolist()
        missing, waiting, failed, bad, asking = facts
        if waiting:
            record_progress()
        if missing and asking:
            raise stopped_early_error()
        of_ranks = [(own.failure, own.bad)]
        if failed or bad:
            of_ranks = gather_objects((own.failure, own.bad), ranks)
        return Readiness(
            ready=not missing,
            waits=bool(waiting),
            failure=next((failure for failure, _ in of_ranks if failure is not None), None),
            bad=tuple(sample for _, samples in of_ranks for sample in samples) if not missing else (),
        )

    return agree
