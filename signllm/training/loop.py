"""The training loop of every stage.

In each step all ranks take a batch, run a forward and a backward pass, and step the optimizer. Their loss
shares and their preemption flags travel in one small all-reduce that overlaps with the backward pass. What
the ranks do next (save, stop or raise) follows from that sum alone, so all ranks always decide alike. Rank 0
writes checkpoints in the background. Validation, logs and trackers are callbacks
(:mod:`signllm.training.callbacks`). No random state is saved: each step seeds the generators from the seed,
the step and the rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from signllm.distributed.failures import RankFailedError, fail_together, require_finite
from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.preemption import PreemptionFlag, preemption_flag, stop_if_preempted
from signllm.distributed.watchdog import record_progress
from signllm.progress import Bar, print_translations, progress
from signllm.storage import DataLostError
from signllm.training.callbacks import Callback, Outcome, RunContext, ValidationSamples
from signllm.training.checkpoint import (
    TrainingState,
    checkpoint_name,
    checkpoint_revision,
    install_weights,
    last_checkpoint,
    load_moments,
    load_weights,
    read_state,
    save_checkpoint,
)
from signllm.training.engine import ParameterGroup, TrainingConfig, build_engine, take_step
from signllm.training.engine_state import gather_engine_state, load_engine_state
from signllm.training.epochs import Batches, EpochEnds, last_step
from signllm.training.schedule import set_learning_rates
from signllm.training.startup import report_startup
from signllm.training.throughput import Throughput, format_rates
from signllm.training.trace import trace_steps
from signllm.training.training_log import TrainingLog
from signllm.training.writer import BackgroundWriter
from signllm.training.zero3 import clear_partitioned_gradients

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor, nn

log = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    config: TrainingConfig,
    context: RunContext,
    parameter_groups: Sequence[ParameterGroup] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Train ``model`` to the end of ``config``, or until the job is preempted; all ranks call it.

    Training resumes from the last complete checkpoint of the run folder if there is one. Afterwards the model
    holds the trained weights; under ZeRO-3 they are still partitioned over the ranks.

    Args:
        model: returns a dict of loss shares for a batch: ``loss`` first, then other losses and counts of what
            was processed (:mod:`signllm.training.throughput`).
        batches: this rank's batches.
        config: optimizer, schedule and intervals.
        context: run folder, stage and ranks.
        parameter_groups: parameters with their own learning rates; None puts all into one group.
        callbacks: everything else that happens at the steps of the run, called in this order. Without them
            nothing is validated.

    Raises:
        UsageError: the run is of another stage, the disk is full, or the configuration contradicts itself.
        NotFiniteError: the loss or the gradient is not finite.
        RankFailedError: another rank failed; its report is in ``run/failures``.
        StoppedEarlyError: the job was preempted before the first step.
    """
    run, stage, ranks = context.run, context.stage, context.ranks
    hang_s = min(config.hang_s, 0.8 * config.timeout_s)  # before the network's own, less helpful time-out
    with fail_together(run, ranks.rank, f"stage {stage}", hang_s=hang_s), preemption_flag() as flag:
        checkpoint = _checkpoint_of_rank_zero(context)
        step = 0
        if checkpoint is not None:
            state = read_state(checkpoint)
            batches.load_state_dict(dict(state.order))
            step = state.step
            for callback in callbacks:
                callback.on_resume(state)
        trainer = _Trainer(
            model,
            batches,
            config=config,
            context=context,
            end=last_step(config, batches, step),
            callbacks=callbacks,
        )
        if checkpoint is not None and trainer.is_finished(step):
            install_weights(model, load_weights(checkpoint), where=checkpoint)
            outcome = Outcome(step=step, stop_reason=trainer.stop_reason)
        else:
            stop_if_preempted(ranks.device)
            trainer.build_engine(parameter_groups)
            trainer.resume(checkpoint)
            report_startup(trainer.engine, config, context, end=trainer.end, step=step, checkpoint=checkpoint)
            outcome = trainer.train(flag)
        if outcome.stop_reason is not None and outcome.step < trainer.end and context.is_first_rank:
            log.warning("%s ends at step %d of %d: %s", stage, outcome.step, trainer.end, outcome.stop_reason)
        return outcome


def _checkpoint_of_rank_zero(context: RunContext) -> Path | None:
    """Return the last checkpoint that rank 0 sees; on a slow file system others may see an older one."""
    local = last_checkpoint(context.run) if context.is_first_rank else None
    if local is not None:
        read_state(local, stage=context.stage)
    name = [None if local is None else local.name]
    dist.broadcast_object_list(name, src=0)
    return None if name[0] is None else context.run / "checkpoints" / name[0]


class _Trainer:
    """One training run: the engine, the data, and the step that both have reached.

    It is the :class:`~signllm.training.callbacks.Training` that its callbacks receive.
    """

    engine: DeepSpeedEngine
    training_log: TrainingLog

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        *,
        config: TrainingConfig,
        context: RunContext,
        end: int,
        callbacks: Sequence[Callback],
    ) -> None:
        self.model, self.batches, self.config, self.context = model, batches, config, context
        self.end, self.callbacks, self.ranks = end, callbacks, context.ranks
        self.step = self.saved_step = 0
        self.epoch = 0  # of the last batch
        self.in_step = False  # a half-finished step leaves partial sums in buffers, which must not be saved
        self.checkpoint_requested = False
        self.epoch_ends = EpochEnds(batches, config.accumulation)
        self.revision = 0
        self.writer = BackgroundWriter()
        self.throughput = Throughput(rank=self.ranks.rank, world=self.ranks.world, device=self.ranks.device)
        self.rates: dict[str, float] = {}

    def build_engine(self, groups: Sequence[ParameterGroup] | None) -> None:
        """Build the engine, which partitions weights and optimizer over the ranks."""
        self.engine = build_engine(self.model, groups, self.config)
        self.model = self.engine.module

    @property
    def has_work_left(self) -> bool:
        """Whether the current step is unfinished, because a preemption interrupted a callback."""
        return any(callback.has_work_left for callback in self.callbacks)

    @property
    def stop_reason(self) -> str | None:
        """Why a callback ends training; None if none does."""
        return next((callback.stop_reason for callback in self.callbacks if callback.stop_reason), None)

    def is_finished(self, step: int) -> bool:
        """Return whether a run that has reached this step has nothing left to do."""
        return not self.has_work_left and (step >= self.end or self.stop_reason is not None)

    @property
    def checkpoint_name(self) -> str:
        """Name of the checkpoint of the current step."""
        return checkpoint_name(self.step, self.revision)

    def is_epoch_end(self) -> bool:
        """Return whether an epoch ends with the current step."""
        return self.epoch_ends.ends_at(self.step, self.epoch)

    def log(self, values: Mapping[str, Any]) -> None:
        """Write a line of ``log.jsonl`` for the current step, and pass it to the callbacks (rank 0)."""
        if self.context.is_first_rank:
            line = self.training_log.write(self.step, values)
            for callback in self.callbacks:
                callback.on_log(self, line)

    def report_validation(self, values: Mapping[str, float]) -> None:
        """Log validated values and pass them to the callbacks (all ranks)."""
        self.log({f"validate/{name}": value for name, value in values.items()})
        for callback in self.callbacks:
            callback.on_validation(self, values)
        self.throughput.restart()

    def show_samples(self, samples: ValidationSamples) -> None:
        """Pass the samples of a validation to the callbacks, and print their translations (rank 0)."""
        if not self.context.is_first_rank:
            return
        for callback in self.callbacks:
            callback.on_samples(self, samples)
        if samples.translations:
            stage = self.context.stage
            heading = f"{stage}, after {self.step} of {self.end} steps: videos it does not train on"
            print_translations(heading, samples.translations)

    def request_checkpoint(self) -> None:
        """Save a checkpoint after the current step (all ranks)."""
        self.checkpoint_requested = True

    def resume(self, checkpoint: Path | None) -> None:
        """Load weights, moments and step from a checkpoint; None starts from the beginning."""
        if checkpoint is None:
            return
        state = read_state(checkpoint, stage=self.context.stage)
        weights = load_weights(checkpoint)
        install_weights(self.engine.module, weights, where=checkpoint)
        load_engine_state(self.engine, weights, load_moments(checkpoint), state.step)
        self.step = self.saved_step = state.step
        self.revision = checkpoint_revision(checkpoint)

    def train(self, flag: PreemptionFlag) -> Outcome:
        """Take steps until the end or until a rank is preempted, then wait for the last save."""
        outcome: Outcome | None = None
        try:
            last = self.take_steps(flag)
            self.end_save()
            outcome = last
            return outcome
        except DataLostError as error:
            if not self.in_step:
                self.save()
                self.end_save()
            raise DataLostError(f"{error}\n  kept:   checkpoint of step {self.saved_step}") from None
        finally:
            self.writer.finish()
            for callback in self.callbacks:
                callback.on_end(self, outcome)

    def take_steps(self, flag: PreemptionFlag) -> Outcome:
        """Run the steps of :meth:`train`; the last checkpoint may still be being written on return."""
        is_first, first_step = self.context.is_first_rank, self.step
        metrics: dict[str, float] = {}
        self.model.train()
        stream = iter(self.batches)
        with (
            TrainingLog(
                self.context.run,
                self.context.stage,
                resumed_step=first_step,
                validation_left=self.has_work_left,
                enabled=is_first,
            ) as self.training_log,
            progress(self.end - first_step, self.context.stage, unit="steps", enabled=is_first) as bar,
            trace_steps(
                self.context, first=first_step, end=self.end, steps=self.config.profile
            ) as after_step,
        ):
            for callback in self.callbacks:
                callback.on_start(self)
            self.finish_resumed_step()
            leave = self.has_work_left
            while not leave and not self.is_finished(self.step):
                try:
                    metrics, leave = self.one_step(stream, flag)
                except StoppedEarlyError:  # while this rank waited for a batch
                    if self.in_step:
                        raise
                    leave = True
                    self.save()
                    break
                after_step()
                self.log_step(bar, metrics)
                for callback in self.callbacks:
                    callback.on_step(self, metrics)
                leave = leave or self.has_work_left
                is_due = self.checkpoint_requested or self.step % self.config.save_every == 0
                if leave or is_due or self.is_finished(self.step):
                    self.save()
        preempted = leave and not self.is_finished(self.step)
        return Outcome(step=self.step, preempted=preempted, stop_reason=self.stop_reason, metrics=metrics)

    def finish_resumed_step(self) -> None:
        """Do what a preemption left undone in the checkpoint's step, and save that as a new checkpoint."""
        unfinished = [callback for callback in self.callbacks if callback.has_work_left]
        if not unfinished:
            return
        self.revision += 1
        for callback in unfinished:
            callback.finish_step(self)
        if not self.has_work_left:
            self.saved_step = -1
            self.save()

    def one_step(self, stream: Iterator[Any], flag: PreemptionFlag) -> tuple[dict[str, float], bool]:
        """Take one optimizer step; return the global losses, and whether a rank was preempted."""
        config, engine = self.config, self.engine
        record_progress(self.step + 1)
        torch.manual_seed(_step_seed(config.seed, self.step, self.ranks.rank))
        set_learning_rates(engine.basic_optimizer.param_groups, config, step=self.step, end=self.end)
        clear_partitioned_gradients(engine)
        total: dict[str, Tensor] = {}
        for forward in range(config.accumulation):
            batch = self.throughput.next_batch(stream)
            self.in_step = True
            shares = engine(batch.to(self.ranks.device))
            for name, share in self.throughput.take_counts(shares).items():
                total[name] = total.get(name, 0.0) + share.detach().double() / config.accumulation
            if forward == config.accumulation - 1:
                local = [float(flag.requested), float(self.writer.failed), *self.throughput.local_numbers()]
                numbers = torch.tensor(local, dtype=torch.float64, device=self.ranks.device)
                summed = torch.cat([torch.stack(list(total.values())), numbers])
                arriving = dist.all_reduce(summed, async_op=True)
            engine.backward(shares["loss"] * self.ranks.world)
            norm = take_step(engine)
        arriving.wait()
        self.step += 1
        self.in_step = False
        self.revision = 0
        values = summed.tolist()
        metrics = dict(zip(total, values, strict=False), grad_norm=norm)
        preempted_ranks, failed_writes, *rest = values[len(total) :]
        self.throughput.add_step(rest)
        if failed_writes:
            self.end_save()
        self.epoch = int(getattr(batch, "epoch", 0))
        stage, run = self.context.stage, self.context.run
        where = f"stage {stage}, {run}; the last checkpoint is of step {self.saved_step}"
        require_finite(metrics, total, step=self.step, rank=self.ranks.rank, where=where)
        return metrics, preempted_ranks > 0

    def log_step(self, bar: Bar, metrics: Mapping[str, float]) -> None:
        """Advance the progress bar and, every ``log_every`` steps, write a line of the log (rank 0)."""
        is_due = self.step % self.config.log_every == 0 or self.step == self.end
        if is_due:
            self.rates = self.throughput.rates()
        bar.advance(1, format_rates(metrics, self.rates))
        if not is_due:
            return
        rates = {f"lr/{group['name']}": group["lr"] for group in self.engine.basic_optimizer.param_groups}
        learning_rates = {"lr": next(iter(rates.values()))} | (rates if len(rates) > 1 else {})
        self.log({"epoch": self.epoch, **metrics, **learning_rates, **self.rates})

    def save(self) -> None:
        """Save a checkpoint: all ranks gather it, then rank 0 writes it in the background."""
        self.checkpoint_requested = False
        if self.step == self.saved_step:
            return
        begun = time.perf_counter()
        self.end_save()
        weights, moments = gather_engine_state(self.engine, keep=self.context.is_first_rank)
        if self.context.is_first_rank:
            fields: dict[str, Any] = {"stage": self.context.stage, "step": self.step}
            for callback in self.callbacks:
                fields |= callback.checkpoint_state()
            state = TrainingState(order=dict(self.batches.state_dict()), **fields)
            files = [callback.on_checkpoint for callback in self.callbacks]
            write = partial(save_checkpoint, keep=self.config.keep, extra_files=files, revision=self.revision)
            self.writer.start(partial(write, self.context.run, state, weights, moments))
        self.saved_step = self.step
        self.throughput.add_save_time(time.perf_counter() - begun)

    def end_save(self) -> None:
        """Wait until the last checkpoint is on the disk, and tell all ranks whether it is.

        Raises:
            UsageError: the disk is full (rank 0).
            RankFailedError: rank 0 could not write the checkpoint.
        """
        error: Exception | None = None
        try:
            self.writer.wait()
        except Exception as problem:
            error = problem
        failed = torch.tensor(float(error is not None), device=self.ranks.device)
        dist.all_reduce(failed)
        if error is not None:
            raise error
        if failed.item():
            raise RankFailedError(
                f"rank 0 could not write the checkpoint of step {self.saved_step} into {self.context.run}"
            )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for one step of one rank, so that dropout after a resume equals that without one."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % (1 << 63)
