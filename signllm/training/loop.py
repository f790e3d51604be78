"""The training loop of every stage.

In each step all ranks take a batch, run a forward and a backward pass, and step the optimizer. Their loss
shares and their preemption flags travel in one small all-reduce that overlaps with the backward pass. What
the ranks do next (save, stop or raise) follows from that sum alone, so all ranks always decide alike. Rank 0
writes checkpoints in the background. No random state is saved: each step seeds the generators from the seed,
the step and the rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from signllm.distributed.failures import RankFailedError, fail_together, require_finite
from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.preemption import PreemptionFlag, preemption_flag, stop_if_preempted
from signllm.distributed.ranks import Ranks, start_distributed
from signllm.distributed.watchdog import record_progress
from signllm.progress import Bar, print_translations, progress
from signllm.storage import DataLostError
from signllm.training.checkpoint import (
    TrainingState,
    WriteExtraFiles,
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
from signllm.training.schedule import learning_rate_factor
from signllm.training.startup import report_startup
from signllm.training.throughput import Throughput, format_rates
from signllm.training.trace import trace_steps
from signllm.training.training_log import AlarmCheck, TrainingLog
from signllm.training.validation import CollectSamples, Validate, Validation
from signllm.training.writer import BackgroundWriter
from signllm.training.zero3 import clear_partitioned_gradients

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor, nn

OnStep = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended: the last step, its losses, and whether the job was preempted before the end."""

    step: int
    preempted: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    config: TrainingConfig,
    run: Path,
    stage: str,
    parameter_groups: Sequence[ParameterGroup] | None = None,
    validate: Validate | None = None,
    scores: Collection[str] = (),
    on_step: OnStep | None = None,
    check_alarms: AlarmCheck | None = None,
    collect_samples: CollectSamples | None = None,
    extra_files: WriteExtraFiles | None = None,
    stop_at: int | None = None,
) -> Outcome:
    """Train ``model`` to the end of ``config``, or until the job is preempted; all ranks call it.

    Training resumes from the last complete checkpoint in ``run/checkpoints`` if there is one. Afterwards the
    model holds the trained weights; under ZeRO-3 they are still partitioned over the ranks.

    Args:
        model: returns a dict of loss shares for a batch: ``loss`` first, then other losses and counts of what
            was processed (:mod:`signllm.training.throughput`).
        batches: this rank's batches.
        config: optimizer, schedule and intervals.
        run: the run folder.
        stage: name of the stage, recorded in the log and in every checkpoint.
        parameter_groups: parameters with their own learning rates; None puts all into one group.
        validate: ``validate(model, step)`` returns validated values (all ranks, in evaluation mode).
        scores: names of validated values that are better when higher; others are better when lower.
        on_step: called after each step with the step and its losses.
        check_alarms: returns the alarms that a line of the log raises (rank 0).
        collect_samples: returns what TensorBoard shows after a validation (all ranks); it must not raise.
        extra_files: writes the caller's own files into a checkpoint's folder (rank 0).
        stop_at: step at which to save and return early; the learning rate schedule ignores it.

    Raises:
        UsageError: the run is of another stage, the disk is full, or the configuration contradicts itself.
        NotFiniteError: the loss or the gradient is not finite.
        RankFailedError: another rank failed; its report is in ``run/failures``.
        StoppedEarlyError: the job was preempted before the first step.
    """
    ranks = start_distributed(timeout_s=config.timeout_s)
    hang_s = min(config.hang_s, 0.8 * config.timeout_s)  # before the network's own, less helpful time-out
    with fail_together(run, ranks.rank, f"stage {stage}", hang_s=hang_s), preemption_flag() as flag:
        checkpoint = _checkpoint_of_rank_zero(run, stage, ranks)
        step = 0
        if checkpoint is not None:
            state = read_state(checkpoint)
            batches.load_state_dict(dict(state.order))
            step = state.step
        end = last_step(config, batches, step)
        stop = end if stop_at is None else min(stop_at, end)
        if checkpoint is not None and _is_done(state, stop, validate):
            install_weights(model, load_weights(checkpoint), where=checkpoint)
            return Outcome(step=step)
        stop_if_preempted(ranks.device)
        trainer = _Trainer(
            model,
            batches,
            config=config,
            run=run,
            stage=stage,
            groups=parameter_groups,
            ranks=ranks,
            end=end,
            stop=stop,
            extra_files=extra_files,
            validation=Validation(
                validate, collect_samples if config.tensorboard else None, config, end=end, scores=scores
            ),
            check_alarms=check_alarms,
        )
        trainer.resume(checkpoint)
        engine, step = trainer.engine, trainer.step
        report_startup(engine, config, ranks, run=run, stage=stage, end=end, step=step, checkpoint=checkpoint)
        return trainer.train(flag, on_step)


def _is_done(state: TrainingState, stop: int, validate: Validate | None) -> bool:
    return state.step >= stop and not (state.validation_left and validate is not None)


def _checkpoint_of_rank_zero(run: Path, stage: str, ranks: Ranks) -> Path | None:
    """Return the last checkpoint that rank 0 sees; on a slow file system others may see an older one."""
    local = last_checkpoint(run) if ranks.rank == 0 else None
    if local is not None:
        read_state(local, stage=stage)
    name = [None if local is None else local.name]
    dist.broadcast_object_list(name, src=0)
    return None if name[0] is None else run / "checkpoints" / name[0]


class _Trainer:
    """One training run: the engine, the data, and the step that both have reached."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        *,
        config: TrainingConfig,
        run: Path,
        stage: str,
        groups: Sequence[ParameterGroup] | None,
        ranks: Ranks,
        end: int,
        stop: int,
        extra_files: WriteExtraFiles | None,
        validation: Validation,
        check_alarms: AlarmCheck | None,
    ) -> None:
        self.batches, self.config, self.run, self.stage, self.ranks = batches, config, run, stage, ranks
        self.end, self.stop, self.extra_files, self.check_alarms = end, stop, extra_files, check_alarms
        self.engine: DeepSpeedEngine = build_engine(model, groups, config)
        self.step = self.saved_step = 0
        self.in_step = False  # a half-finished step leaves partial sums in buffers, which must not be saved
        self.validation = validation
        self.epoch_ends = EpochEnds(batches, config.accumulation)
        self.revision = 0
        self.writer = BackgroundWriter()
        self.throughput = Throughput(rank=ranks.rank, world=ranks.world, device=ranks.device)
        self.rates: dict[str, float] = {}

    def resume(self, checkpoint: Path | None) -> None:
        """Load weights, moments and step from a checkpoint; None starts from the beginning."""
        if checkpoint is None:
            return
        state = read_state(checkpoint, stage=self.stage)
        weights = load_weights(checkpoint)
        install_weights(self.engine.module, weights, where=checkpoint)
        load_engine_state(self.engine, weights, load_moments(checkpoint), state.step)
        self.step = self.saved_step = state.step
        self.validation.resume(state)
        self.revision = checkpoint_revision(checkpoint)

    def train(self, flag: PreemptionFlag, on_step: OnStep | None) -> Outcome:
        """Take steps until the end or until a rank is preempted, then wait for the last save."""
        try:
            outcome = self.take_steps(flag, on_step)
            self.end_save()
            return outcome
        except DataLostError as error:
            if not self.in_step:
                self.save()
                self.end_save()
            raise DataLostError(f"{error}\n  kept:   checkpoint of step {self.saved_step}") from None
        finally:
            self.writer.finish()

    def take_steps(self, flag: PreemptionFlag, on_step: OnStep | None) -> Outcome:
        """Run the steps of :meth:`train`; the last checkpoint may still be being written on return."""
        is_first = self.ranks.rank == 0
        metrics: dict[str, float] = {}
        self.engine.module.train()
        stream = iter(self.batches)
        with (
            TrainingLog(
                self.run,
                self.stage,
                resumed_step=self.step,
                validation_left=self.validation.pending,
                tensorboard=self.config.tensorboard,
                check_alarms=self.check_alarms,
                enabled=is_first,
            ) as log,
            progress(self.stop - self.step, self.stage, unit="steps", enabled=is_first) as bar,
            trace_steps(
                self.run, self.stage, self.ranks, first=self.step, end=self.stop, steps=self.config.profile
            ) as after_step,
        ):
            if self.validation.pending:
                self.validate_resumed_step(log)
            leave = self.validation.pending
            while self.step < self.stop and not leave:
                try:
                    metrics, epoch, leave = self.one_step(stream, flag)
                except StoppedEarlyError:  # while this rank waited for a batch
                    if self.in_step:
                        raise
                    leave = True
                    self.save()
                    break
                self.validation.check_keep_best(metrics)
                after_step()
                self.log_step(log, bar, metrics, epoch)
                if on_step is not None:
                    on_step(self.step, metrics)
                improved = self.validate(log, epoch)
                leave = leave or self.validation.pending
                if leave or improved or self.step == self.stop or self.step % self.config.save_every == 0:
                    self.save()
        is_unfinished = self.step < self.end or self.validation.pending
        return Outcome(step=self.step, preempted=leave and is_unfinished, metrics=metrics)

    def one_step(self, stream: Iterator[Any], flag: PreemptionFlag) -> tuple[dict[str, float], int, bool]:
        """Take one optimizer step; return the global losses, the epoch, and whether a rank was preempted."""
        config, engine = self.config, self.engine
        record_progress(self.step + 1)
        torch.manual_seed(_step_seed(config.seed, self.step, self.ranks.rank))
        self.set_learning_rates()
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
        where = f"stage {self.stage}, {self.run}; the last checkpoint is of step {self.saved_step}"
        require_finite(metrics, total, step=self.step, rank=self.ranks.rank, where=where)
        return metrics, int(getattr(batch, "epoch", 0)), preempted_ranks > 0

    def set_learning_rates(self) -> None:
        """Set the learning rate of each parameter group for the coming step."""
        config = self.config
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(
                self.step,
                self.end,
                warmup_steps=config.warmup_steps,
                shape=config.schedule,
                final_factor=config.final_factor,
            )

    def log_step(self, log: TrainingLog, bar: Bar, metrics: Mapping[str, float], epoch: int) -> None:
        """Advance the progress bar and, every ``log_every`` steps, write a line of the log (rank 0)."""
        is_due = self.step % self.config.log_every == 0 or self.step == self.end
        if is_due:
            self.rates = self.throughput.rates()
        bar.advance(1, format_rates(metrics, self.rates))
        if not is_due:
            return
        rates = {f"lr/{group['name']}": group["lr"] for group in self.engine.basic_optimizer.param_groups}
        learning_rates = {"lr": next(iter(rates.values()))} | (rates if len(rates) > 1 else {})
        log.write(self.step, {"epoch": epoch, **metrics, **learning_rates, **self.rates})

    def validate(self, log: TrainingLog, epoch: int | None = None) -> bool:
        """Validate this step if it is due, log the values, and return whether they are the best so far."""
        ends = epoch is not None and self.epoch_ends.ends_at(self.step, epoch)
        model, validation = self.engine.module, self.validation
        values = validation.validate_if_due(model, self.step, self.ranks.device, epoch_ends=ends)
        if values:
            log.write(self.step, {f"validate/{name}": value for name, value in values.items()})
            log.write_samples(self.step, validation.samples)
            if validation.samples.translations:
                heading = f"{self.stage}, after {self.step} of {self.end} steps: videos it does not train on"
                print_translations(heading, validation.samples.translations)
            self.throughput.restart()
        return validation.update_best(values, self.step, self.revision)

    def validate_resumed_step(self, log: TrainingLog) -> None:
        """Make up for the validation that a preemption skipped, and save its result in a new checkpoint."""
        self.revision += 1
        self.validate(log)
        if not self.validation.pending:
            self.saved_step = -1
            self.save()

    def save(self) -> None:
        """Save a checkpoint: all ranks gather it, then rank 0 writes it in the background."""
        if self.step == self.saved_step:
            return
        begun = time.perf_counter()
        self.end_save()
        is_first = self.ranks.rank == 0
        weights, moments = gather_engine_state(self.engine, keep=is_first)
        if is_first:
            state = TrainingState(
                stage=self.stage,
                step=self.step,
                order=dict(self.batches.state_dict()),
                best=self.validation.best,
                validation_left=self.validation.pending,
            )
            write = partial(
                save_checkpoint, keep=self.config.keep, extra_files=self.extra_files, revision=self.revision
            )
            self.writer.start(partial(write, self.run, state, weights, moments))
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
                f"rank 0 could not write the checkpoint of step {self.saved_step} into {self.run}"
            )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for one step of one rank, so that dropout after a resume equals that without one."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % (1 << 63)
