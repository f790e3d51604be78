"""The training loop, once, for every stage.

Each step: all ranks take a batch, run forward and backward, step; their loss shares, and whether any of
them was asked to leave, travel in one small reduction that runs beside the backward pass. What the ranks do
next (save, stop, raise) is decided from that sum alone, so they always decide alike. Rank 0 writes, beside
the steps that follow. No state of a random generator is saved: each step seeds it from seed, step and rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from signllm.progress import Bar, print_translations, progress
from signllm.storage import DataLostError
from signllm.training.checkpoint import (
    Beside,
    TrainingState,
    install_weights,
    last_checkpoint,
    load_moments,
    load_weights,
    read_state,
    revision_of,
    save,
)
from signllm.training.engine import (
    ParameterGroup,
    Ranks,
    TrainingConfig,
    build_engine,
    start_distributed,
    take_step,
)
from signllm.training.epochs import Batches, EpochEnds, last_step
from signllm.training.failures import RankFailedError, failing_together, require_finite
from signllm.training.local_ranks import StoppedEarlyError
from signllm.training.metrics import TrainingLog, Watch
from signllm.training.partitions import read_whole, write_whole
from signllm.training.preemption import PreemptionFlag, asked_to_leave, leave_together
from signllm.training.profile import profiled
from signllm.training.schedule import learning_rate_factor
from signllm.training.startup import announce
from signllm.training.throughput import Throughput, told
from signllm.training.validation import Look, Validate, Validation
from signllm.training.watchdog import beat
from signllm.training.writer import Writer
from signllm.training.zero3 import forget_gradients

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor, nn

OnStep = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended: after which step, with which losses, and whether it was asked to leave early."""

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
    watch: Watch | None = None,
    look: Look | None = None,
    beside: Beside | None = None,
    until: int | None = None,
) -> Outcome:
    """Train ``model`` to the end of ``config`` or until the job is asked to leave; all ranks call it.

    Continues by itself from the last whole checkpoint in ``run/checkpoints``. ``model(batch)`` returns a
    dict of loss shares, ``loss`` first, and what it worked on (:mod:`signllm.training.throughput`).
    ``validate(model, step)`` runs on all ranks, in evaluation mode; ``scores`` names what of it is best
    where it is highest. ``watch(line)`` looks at each line of the log and returns what is alarming (rank 0).
    ``look(model, step)`` follows each validation and returns what TensorBoard shows of it (all ranks; it
    must not fail). ``beside(folder)`` puts files of the caller's own into every checkpoint (rank 0).
    ``until`` is a step to save and stop at: the schedule does not know of it, and the next call goes on from
    there. Afterwards the model holds the trained weights (under ZeRO-3 still cut over the ranks).

    Raises:
        UsageError: the run is of another stage, the disk is full, the configuration contradicts itself.
        NotFiniteError: the loss is not a number.
        RankFailedError: another rank failed; its report is in ``run/failures``.
        StoppedEarlyError: asked to leave before the first step.
    """
    ranks = start_distributed(timeout_s=config.timeout_s)
    hang_s = min(config.hang_s, 0.8 * config.timeout_s)  # the network's own time-out would tell less
    with failing_together(run, ranks.rank, f"stage {stage}", hang_s=hang_s), asked_to_leave() as flag:
        found = _agreed_checkpoint(run, stage, ranks)
        step = 0
        if found is not None:
            state = read_state(found)
            batches.load_state_dict(dict(state.order))
            step = state.step
        end = last_step(config, batches, step)
        stop = end if until is None else min(until, end)
        if found is not None and _is_done(state, stop, validate):
            install_weights(model, load_weights(found), where=found)
            return Outcome(step=step)
        leave_together(ranks.device)
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
            beside=beside,
            validation=Validation(
                validate, look if config.tensorboard else None, config, end=end, scores=scores
            ),
            watch=watch,
        )
        trainer.resume(found)
        announce(
            trainer.engine,
            config,
            ranks,
            run=run,
            stage=stage,
            end=end,
            step=trainer.step,
            checkpoint=found,
        )
        return trainer.train(flag, on_step)


def _is_done(state: TrainingState, stop: int, validate: Validate | None) -> bool:
    return state.step >= stop and not (state.validation_left and validate is not None)


def _agreed_checkpoint(run: Path, stage: str, ranks: Ranks) -> Path | None:
    """Return the checkpoint that rank 0 finds, so that a slow file system cannot part the ranks."""
    found = last_checkpoint(run) if ranks.rank == 0 else None
    if found is not None:
        read_state(found, stage=stage)
    name = [None if found is None else found.name]
    dist.broadcast_object_list(name, src=0)
    return None if name[0] is None else run / "checkpoints" / name[0]


class _Trainer:
    """One run in progress: the engine, the data, and the step that they have reached together."""

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
        beside: Beside | None,
        validation: Validation,
        watch: Watch | None,
    ) -> None:
        self.batches, self.config, self.run, self.stage, self.ranks = batches, config, run, stage, ranks
        self.end, self.stop, self.beside, self.watch = end, stop, beside, watch
        self.engine: DeepSpeedEngine = build_engine(model, groups, config)
        self.step = self.saved_step = 0
        self.in_step = False  # what a step that is half done leaves in buffers is never saved
        self.validation = validation
        self.epoch_ends = EpochEnds(batches, config.accumulation)
        self.revision = 0
        self.writer = Writer()
        self.since = Throughput(rank=ranks.rank, world=ranks.world, device=ranks.device)
        self.rates: dict[str, float] = {}

    def resume(self, checkpoint: Path | None) -> None:
        """Continue from a checkpoint: weights, moments, step; None starts afresh."""
        if checkpoint is None:
            return
        state = read_state(checkpoint, stage=self.stage)
        weights = load_weights(checkpoint)
        install_weights(self.engine.module, weights, where=checkpoint)
        write_whole(self.engine, weights, load_moments(checkpoint), state.step)
        self.step = self.saved_step = state.step
        self.validation.resume(state)
        self.revision = revision_of(checkpoint)

    def train(self, flag: PreemptionFlag, on_step: OnStep | None) -> Outcome:
        """Take steps until the end, or until a rank is asked to leave; then end the last save."""
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
        """Run the steps of :meth:`train`; what they saved last may still be on its way to the disk."""
        first = self.ranks.rank == 0
        metrics: dict[str, float] = {}
        self.engine.module.train()
        stream = iter(self.batches)
        with (
            TrainingLog(
                self.run,
                self.stage,
                resumed_step=self.step,
                validation_left=self.validation.left,
                tensorboard=self.config.tensorboard,
                watch=self.watch,
                enabled=first,
            ) as log,
            progress(self.stop - self.step, self.stage, unit="steps", enabled=first) as bar,
            profiled(
                self.run, self.stage, self.ranks, first=self.step, end=self.stop, steps=self.config.profile
            ) as step_is_traced,
        ):
            if self.validation.left:
                self.catch_up(log)
            leave = self.validation.left
            while self.step < self.stop and not leave:
                try:
                    metrics, epoch, leave = self.one_step(stream, flag)
                except StoppedEarlyError:  # while a batch was waited for
                    if self.in_step:
                        raise
                    leave = True
                    self.save()
                    break
                self.validation.expect(metrics)
                step_is_traced()
                self.tell(log, bar, metrics, epoch)
                if on_step is not None:
                    on_step(self.step, metrics)
                improved = self.validate(log, epoch)
                leave = leave or self.validation.left
                if leave or improved or self.step == self.stop or self.step % self.config.save_every == 0:
                    self.save()
        left = self.step < self.end or self.validation.left
        return Outcome(step=self.step, preempted=leave and left, metrics=metrics)

    def one_step(self, stream: Iterator[Any], flag: PreemptionFlag) -> tuple[dict[str, float], int, bool]:
        """Take one optimizer step; return the global losses, the epoch, and whether all are to leave."""
        config, engine = self.config, self.engine
        beat(self.step + 1)
        torch.manual_seed(_seed_of(config.seed, self.step, self.ranks.rank))
        self.set_learning_rates()
        forget_gradients(engine)
        total: dict[str, Tensor] = {}
        for forward in range(config.accumulation):
            batch = self.since.waiting(stream)
            self.in_step = True
            shares = engine(batch.to(self.ranks.device))
            for name, share in self.since.losses(shares).items():
                total[name] = total.get(name, 0.0) + share.detach().double() / config.accumulation
            if forward == config.accumulation - 1:
                own = [float(flag.requested), float(self.writer.failed), *self.since.own()]
                told_by_rank = torch.tensor(own, dtype=torch.float64, device=self.ranks.device)
                summed = torch.cat([torch.stack(list(total.values())), told_by_rank])
                arriving = dist.all_reduce(summed, async_op=True)
            engine.backward(shares["loss"] * self.ranks.world)
            norm = take_step(engine)
        arriving.wait()
        self.step += 1
        self.in_step = False
        self.revision = 0
        values = summed.tolist()
        metrics = dict(zip(total, values, strict=False), grad_norm=norm)
        asked_ranks, not_written, *numbers = values[len(total) :]
        self.since.add(numbers)
        if not_written:
            self.end_save()
        saved = f"stage {self.stage}, {self.run}; the last checkpoint is of step {self.saved_step}"
        require_finite(metrics, total, step=self.step, rank=self.ranks.rank, where=saved)
        return metrics, int(getattr(batch, "epoch", 0)), asked_ranks > 0

    def set_learning_rates(self) -> None:
        """Set each group's learning rate for the coming step."""
        config = self.config
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(
                self.step - group["start_step"],
                self.end - group["start_step"],
                warmup_steps=config.warmup_steps,
                shape=config.schedule,
                final_factor=config.final_factor,
            )

    def tell(self, log: TrainingLog, bar: Bar, metrics: Mapping[str, float], epoch: int) -> None:
        """Advance the progress bar and, every ``log_every`` steps, write the log line (rank 0)."""
        due = self.step % self.config.log_every == 0 or self.step == self.end
        if due:
            self.rates = self.since.reading()
        bar.advance(1, told(metrics, self.rates))
        if not due:
            return
        rates = {f"lr/{group['name']}": group["lr"] for group in self.engine.basic_optimizer.param_groups}
        shown = {"lr": next(iter(rates.values()))} | (rates if len(rates) > 1 else {})
        log.write(self.step, {"epoch": epoch, **metrics, **shown, **self.rates})

    def validate(self, log: TrainingLog, epoch: int | None = None) -> bool:
        """Validate this step when it is due, log it, say whether it is the best so far (all ranks)."""
        ends = epoch is not None and self.epoch_ends.at(self.step, epoch)
        values = self.validation.run(self.engine.module, self.step, self.ranks.device, epoch_ends=ends)
        if values:
            log.write(self.step, {f"validate/{name}": value for name, value in values.items()})
            log.show(self.step, self.validation.shown)
            if self.validation.shown.translations:
                heading = f"{self.stage}, after {self.step} of {self.end} steps: videos it does not train on"
                print_translations(heading, self.validation.shown.translations)
            self.since.restart()
        return self.validation.improves(values, self.step, self.revision)

    def catch_up(self, log: TrainingLog) -> None:
        """Validate the step resumed at; save what it gave beside the checkpoint it comes from."""
        self.revision += 1
        self.validate(log)
        if not self.validation.left:
            self.saved_step = -1
            self.save()

    def save(self) -> None:
        """Save a checkpoint: all ranks gather, then rank 0 writes while steps go on (:meth:`end_save`)."""
        if self.step == self.saved_step:
            return
        begun = time.perf_counter()
        self.end_save()
        first = self.ranks.rank == 0
        weights, moments = read_whole(self.engine, keep=first)
        if first:
            state = TrainingState(
                stage=self.stage,
                step=self.step,
                order=dict(self.batches.state_dict()),
                best=self.validation.best,
                validation_left=self.validation.left,
            )
            keep, beside, revision = self.config.keep, self.beside, self.revision
            self.writer.start(
                lambda: save(self.run, state, weights, moments, keep=keep, beside=beside, revision=revision)
            )
        self.saved_step = self.step
        self.since.hold(time.perf_counter() - begun)

    def end_save(self) -> None:
        """Wait until the last checkpoint is on the disk; all ranks learn whether it is.

        Raises:
            UsageError: the disk is full (rank 0).
            RankFailedError: rank 0 could not write it.
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


def _seed_of(seed: int, step: int, rank: int) -> int:
    """Fold a place in training into a seed, so that dropout after a resume is what it would have been."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % (1 << 63)
