"""Callbacks: everything that happens at the steps of a run besides training, and the run as they see it.

:func:`signllm.training.loop.fit` trains; validation, TensorBoard, trackers, the best checkpoint and early
stopping are callbacks that it calls in the order of its list. A new one derives from :class:`Callback`,
overrides the methods that it needs, and is added to the list of a stage, or to
:func:`signllm.training.standard_callbacks.standard_callbacks` if every stage needs it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.ranks import Ranks
from signllm.training.training_log import ALARM, read_log

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from signllm.training.checkpoint import TrainingState

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where a stage runs: what every part of a training run needs to know.

    Attributes:
        run: the run folder.
        stage: name of the stage, recorded in the log and in every checkpoint.
        ranks: the ranks.
    """

    run: Path
    stage: str
    ranks: Ranks

    @property
    def is_first_rank(self) -> bool:
        """Whether this process is rank 0, which alone writes files."""
        return self.ranks.rank == 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended.

    Attributes:
        step: the last step.
        preempted: whether the job was preempted before the end.
        stop_reason: why a callback asked to end training; None if none did.
        metrics: losses of the last step.
    """

    step: int
    preempted: bool = False
    stop_reason: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def raise_if_preempted(self) -> None:
        """Raise an exception if training was preempted before its last step.

        Raises:
            StoppedEarlyError: training was preempted.
        """
        if self.preempted:
            raise StoppedEarlyError(
                f"asked to stop: the run saved its state after step {self.step}; "
                "the same command continues it"
            )


@dataclass(frozen=True)
class ValidationSamples:
    """What a validation shows besides numbers, by name.

    Attributes:
        histograms: values (n,) whose distribution is drawn.
        pictures: images, uint8 (H, W, 3).
        texts: Markdown.
        translations: id, reference and hypothesis of each video.
    """

    histograms: Mapping[str, np.ndarray]
    pictures: Mapping[str, np.ndarray]
    texts: Mapping[str, str]
    translations: Sequence[tuple[str, str, str]] = ()


class Training(Protocol):
    """The running training, which every callback receives."""

    @property
    def context(self) -> RunContext:
        """Run folder, stage and ranks."""

    @property
    def model(self) -> nn.Module:
        """The model; under ZeRO-3 its weights are partitioned over the ranks."""

    @property
    def step(self) -> int:
        """Number of steps taken."""

    @property
    def end(self) -> int:
        """The last step."""

    @property
    def checkpoint_name(self) -> str:
        """Name of the checkpoint of the current step."""

    def is_epoch_end(self) -> bool:
        """Return whether an epoch ends with the current step."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Write a line of ``log.jsonl`` for the current step, which :meth:`Callback.on_log` receives."""

    def report_validation(self, values: Mapping[str, float]) -> None:
        """Log validated values and pass them to :meth:`Callback.on_validation` (all ranks)."""

    def show_samples(self, samples: ValidationSamples) -> None:
        """Print the translations of a validation, and pass rank 0's to :meth:`Callback.on_samples`."""

    def request_checkpoint(self) -> None:
        """Save a checkpoint after the current step (all ranks)."""


class Callback:
    """Takes part in training; each method does nothing unless a subclass overrides it.

    All ranks call each method at the same place, so it may contain collectives, unless it says otherwise. An
    exception ends training on all ranks.

    Attributes:
        has_work_left: whether the current step is not finished, because the job was preempted in the middle
            of this callback's work. Training then saves a checkpoint and ends, and the job that resumes calls
            :meth:`finish_step` first.
        stop_reason: why training should end after the current step; None if it should not. It must be equal
            on all ranks.
    """

    has_work_left: bool = False
    stop_reason: str | None = None

    def on_resume(self, state: TrainingState) -> None:
        """Continue from the state of a checkpoint; called before the engine is built and before on_start."""

    def checkpoint_state(self) -> Mapping[str, Any]:
        """Return fields of :class:`~signllm.training.checkpoint.TrainingState` for the next checkpoint."""
        return {}

    def on_start(self, training: Training) -> None:
        """Prepare for the first step of this process; not called if a finished run is started again."""

    def on_step(self, training: Training, losses: Mapping[str, float]) -> None:
        """Act after a step; ``losses`` are summed over the ranks and include ``grad_norm``."""

    def finish_step(self, training: Training) -> None:
        """Do what a preemption left undone in the step that training resumes from."""

    def on_log(self, training: Training, line: Mapping[str, Any]) -> None:
        """Receive a line that was written into ``log.jsonl`` (rank 0 only)."""

    def on_validation(self, training: Training, values: Mapping[str, float]) -> None:
        """Act on validated values; the model is in evaluation mode and no gradient is recorded."""

    def on_samples(self, training: Training, samples: ValidationSamples) -> None:
        """Receive the samples of a validation (rank 0 only)."""

    def on_checkpoint(self, folder: Path) -> None:
        """Write files into the unfinished folder of a checkpoint (rank 0 only).

        It runs in a thread while training continues, so it must not contain collectives.
        """

    def on_end(self, training: Training, outcome: Outcome | None) -> None:
        """Release resources; ``outcome`` is None after an exception, which may be one of on_start."""


class ExtraFiles(Callback):
    """Adds a stage's own files to every checkpoint.

    Args:
        write: writes them into a folder.
    """

    def __init__(self, write: Callable[[Path], object]) -> None:
        self.write = write

    def on_checkpoint(self, folder: Path) -> None:
        """Write the files."""
        self.write(folder)


class AlarmLogger(Callback):
    """Logs the alarms that lines of the log raise: as a warning, and as a line under the key ``alarm``.

    Args:
        check: receives the lines of a log in order and returns the alarms that each raises.
    """

    def __init__(self, check: Callable[[Mapping[str, Any]], Iterable[object]]) -> None:
        self.check = check

    def on_start(self, training: Training) -> None:
        """Read the log so far; its alarms were logged when its lines were written."""
        if training.context.is_first_rank:
            for line in read_log(training.context.run):
                self.check(line)

    def on_log(self, training: Training, line: Mapping[str, Any]) -> None:
        """Log the alarms that this line raises."""
        for alarm in self.check(line):
            log.warning("%s, step %d: %s", training.context.stage, training.step, alarm)
            training.log({ALARM: str(alarm)})
