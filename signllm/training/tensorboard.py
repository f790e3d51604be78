"""TensorBoard: the numbers of the log as curves, and the samples of validations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import report_full_disk
from signllm.training.callbacks import Callback, Outcome, Training, ValidationSamples
from signllm.training.training_log import ALARM

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Callback):
    """Writes ``run/tensorboard/``, under the name of the stage.

    Values of later steps, which a run wrote that died before its next checkpoint, are hidden on a resume.
    """

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def on_start(self, training: Training) -> None:
        """Open the files (rank 0)."""
        if training.context.is_first_rank:
            from torch.utils.tensorboard import SummaryWriter

            folder, resumed_step = training.context.run / "tensorboard", training.step
            self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else None)

    def on_log(self, training: Training, line: Mapping[str, Any]) -> None:
        """Write the numbers of a line, and an alarm as text."""
        if self._writer is None:
            return
        stage = training.context.stage
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{stage}/{name}", value, training.step)
            elif name == ALARM:
                self._writer.add_text(f"{stage}/{name}", value, training.step)

    def on_samples(self, training: Training, samples: ValidationSamples) -> None:
        """Write histograms, pictures and texts."""
        writer, stage, step = self._writer, training.context.stage, training.step
        if writer is None:
            return
        with report_full_disk(training.context.run / "tensorboard"):
            for name, values in samples.histograms.items():
                writer.add_histogram(f"{stage}/{name}", values, step)
            for name, picture in samples.pictures.items():
                writer.add_image(f"{stage}/{name}", picture, step, dataformats="HWC")
            for name, text in samples.texts.items():
                writer.add_text(f"{stage}/{name}", text, step)
            writer.flush()

    def on_end(self, training: Training, outcome: Outcome | None) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
