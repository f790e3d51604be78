"""Checkpoints that are independent of the number of ranks and of the ZeRO stage, and are complete or absent.

``step-N/`` holds ``weights.safetensors`` (trainable weights and buffers, fp32), ``moments.safetensors``
(Adam's moments, by parameter name), ``state.json`` (step, stage and position in the data), the extra files of
the stage, and ``COMPLETE`` with the size and the CRC-32 of each file. The folder is written under a temporary
name and renamed. DeepSpeed's own checkpoints depend on the number of ranks and are pickles; ours cost one
gather of the trainable part, which does not include the frozen language model. A checkpoint that is derived
from another one of the same step is called ``step-N.1/`` and counts as later. No checkpoint is ever
overwritten, so a complete one exists at any moment.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import report_full_disk, sync
from signllm.errors import UsageError
from signllm.storage import storage_timeout_s, storage_wait_policy, wait_for_storage

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 1
WEIGHTS, MOMENTS_FILE, STATE, COMPLETE = (
    "weights.safetensors",
    "moments.safetensors",
    "state.json",
    "COMPLETE",
)
_BLOCK_BYTES = 1 << 24
SAVE_TIMEOUT_S = 60.0
"""Seconds that a save waits for storage; a preempted job has about as much time."""
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
log = logging.getLogger(__name__)

WriteExtraFiles = Callable[[Path], object]
"""Writes a stage's own files into a checkpoint's unfinished folder; they become part of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything in a checkpoint that is not a tensor.

    Attributes:
        stage: name of the stage.
        step: number of optimizer steps taken.
        order: the loader's state: seed, epoch and number of samples consumed.
        best: the best validated value so far, and the name of its checkpoint.
        validation_left: whether this step still has to be validated, because the job was preempted before.
        validations_without_improvement: number of validations since the best one, counted for early stopping.
        version: version of the checkpoint format.
    """

    stage: str
    step: int
    order: dict[str, int] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    validation_left: bool = False
    validations_without_improvement: int = 0
    version: int = VERSION


def save_checkpoint(
    run: Path,
    state: TrainingState,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    *,
    keep: int,
    extra_files: Sequence[WriteExtraFiles] = (),
    revision: int = 0,
) -> Path:
    """Write ``run/checkpoints/step-N`` atomically, then remove old checkpoints; one rank calls it.

    Args:
        run: the run folder.
        state: everything but the tensors.
        weights: trainable weights and buffers, by name.
        moments: Adam's moments, by name.
        keep: number of the latest checkpoints to keep; the best one is kept in addition.
        extra_files: functions that write further files into the folder.
        revision: if above 0, the name is ``step-N.REVISION``: a checkpoint derived from an earlier one of the
            same step.

    Returns:
        The checkpoint's folder.

    Raises:
        UsageError: the disk is full; no partial checkpoint is left behind.
        StorageError: the storage was unavailable for longer than ``SAVE_TIMEOUT_S``; earlier checkpoints
            stay.
    """
    folder = run / "checkpoints" / checkpoint_name(state.step, revision)
    partial = folder.with_name(f".{folder.name}.partial")

    def write() -> None:
        for left in folder.parent.glob(".step-*.partial"):  # left by a process that was killed while writing
            shutil.rmtree(left, ignore_errors=True)
        size_mb = sum(tensor.nbytes for tensor in (*weights.values(), *moments.values())) / 1e6
        unwritten = f"no checkpoint of step {state.step} was written, which takes {size_mb:.1f} MB"
        with report_full_disk(folder, f"the disk is full: {unwritten}"):
            partial.mkdir(parents=True)
            for write_files in extra_files:
                write_files(partial)
            _write(partial, state, weights, moments)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
            sync(folder.parent)

    try:
        with storage_wait_policy(min(SAVE_TIMEOUT_S, storage_timeout_s())):
            wait_for_storage(write, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _remove_old(run, keep, best=state.best["checkpoint"] if state.best else None)
    return folder


def checkpoint_name(step: int, revision: int = 0) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08d}" + (f".{revision}" if revision else "")


def checkpoint_revision(folder: Path) -> int:
    """Return the revision of a checkpoint: 0 if training saved it, else the number in its name."""
    match = _NAME.fullmatch(folder.name)
    return int(match[2] or 0) if match else 0


def _write(
    folder: Path, state: TrainingState, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> None:
    from safetensors.torch import save_file

    save_file(dict(weights), folder / WEIGHTS)
    save_file(dict(moments), folder / MOMENTS_FILE)
    (folder / STATE).write_text(json.dumps(asdict(state), indent=1))
    content = {path.name: _size_and_checksum(path) for path in sorted(folder.iterdir())}
    for name in content:
        sync(folder / name)
    (folder / COMPLETE).write_text(json.dumps(content))
    sync(folder / COMPLETE)
    sync(folder)


def _remove_old(run: Path, keep: int, *, best: str | None) -> None:
    for folder in [old for old in _folders(run)[:-keep] if old.name != best]:
        (folder / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _folders(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, ordered by step and revision, including incomplete ones."""
    matches = {path: _NAME.fullmatch(path.name) for path in (run / "checkpoints").glob("step-*")}
    places = {path: (int(match[1]), int(match[2] or 0)) for path, match in matches.items() if match}
    return sorted(places, key=lambda path: places[path])


def last_checkpoint(run: Path) -> Path | None:
    """Return the last complete checkpoint of a run, or None; a damaged one is skipped with a warning."""
    for folder in reversed(_folders(run)):
        if _is_complete(folder):
            return folder
        log.warning("checkpoint %s is damaged or incomplete; an earlier one is used", folder)
    return None


def best_checkpoint(run: Path) -> Path:
    """Return the checkpoint with the best validated value so far, as the last complete checkpoint records it.

    Raises:
        UsageError: there is no complete checkpoint, none was validated, or the best one is damaged.
    """
    best = read_state(complete_checkpoint(run)).best
    if best is None:
        raise UsageError(
            "no checkpoint of this run was validated, so there is no best one",
            where=run,
            remedy="use the last checkpoint, or train with a dev split and --training.validate-every",
        )
    folder = run / "checkpoints" / str(best["checkpoint"])
    if not _is_complete(folder):
        raise UsageError("the best checkpoint is damaged", where=folder, remedy="use the last checkpoint")
    return folder


def _is_complete(folder: Path) -> bool:
    """Return whether every file of a checkpoint exists with the content that was written; reads all of them.

    Older checkpoints have no checksums; only their file sizes are verified.
    """

    def check() -> bool:
        content = json.loads((folder / COMPLETE).read_text())
        return bool(content) and all(_matches(folder / name, known) for name, known in content.items())

    try:
        return wait_for_storage(check, folder)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _matches(path: Path, known: int | dict[str, int]) -> bool:
    if isinstance(known, int):
        return path.stat().st_size == known
    return path.stat().st_size == known.get("bytes") and _size_and_checksum(path) == known


def _size_and_checksum(path: Path) -> dict[str, int]:
    """Return the size and the CRC-32 of a file; they detect damage, not tampering."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": crc}


def read_state(folder: Path, *, stage: str | None = None) -> TrainingState:
    """Read ``state.json`` of a checkpoint.

    Args:
        folder: the checkpoint.
        stage: the expected stage; None accepts any.

    Raises:
        UsageError: the checkpoint has another version or belongs to another stage.
    """
    fields: dict[str, Any] = json.loads(wait_for_storage((folder / STATE).read_text, folder / STATE))
    if fields.get("version") != VERSION:
        raise UsageError(
            f"the checkpoint has version {fields.get('version')}; this program reads version {VERSION}",
            where=folder,
            remedy="use the version of signllm that wrote it, or start a new run",
        )
    state = TrainingState(**fields)
    if stage is not None and state.stage != stage:
        raise UsageError(
            f"this is a run of stage {state.stage!r}, not of {stage!r}",
            where=folder.parents[1],
            remedy="give the run folder of the right stage, or another folder for a new run",
        )
    return state


def load_moments(folder: Path) -> dict[str, Tensor]:
    """Load Adam's moments from a checkpoint, named ``exp_avg/NAME`` and ``exp_avg_sq/NAME``."""
    return _load_tensors(folder / MOMENTS_FILE)


def complete_checkpoint(run: Path) -> Path:
    """Return the last complete checkpoint of a run, or ``run`` itself if it is a checkpoint's folder.

    Raises:
        UsageError: there is none.
    """
    folder = run if (run / COMPLETE).exists() else last_checkpoint(run)
    if folder is None:
        raise UsageError(
            "there is no complete checkpoint", where=run / "checkpoints", remedy="train this run first"
        )
    return folder


def load_weights(run: Path, *, stage: str | None = None) -> dict[str, Tensor]:
    """Load weights and buffers of a run's last complete checkpoint by name, on the CPU and without DeepSpeed.

    Args:
        run: the run folder, or the folder of a checkpoint.
        stage: the expected stage; None accepts any.

    Raises:
        UsageError: there is no complete checkpoint, or it has another stage or version.
    """
    folder = complete_checkpoint(run)
    read_state(folder, stage=stage)
    return _load_tensors(folder / WEIGHTS)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return wait_for_storage(lambda: load_file(path), path)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"the checkpoint cannot be read: {error}", where=path, remedy="remove this checkpoint's folder"
        ) from error


def install_weights(
    module: nn.Module, weights: Mapping[str, Tensor], *, where: object, prefix: str = ""
) -> None:
    """Copy the weights whose names start with ``prefix`` into ``module``; all of them must fit.

    Frozen parts that no checkpoint contains stay as they are.

    Args:
        module: the module, whose own names lack the prefix.
        weights: tensors by name.
        where: where the weights come from, for messages.
        prefix: prefix of the names.

    Raises:
        UsageError: a tensor has no place in the module or another shape, or a trainable parameter gets no
            value.
    """
    from signllm.training.engine_state import install_tensors, saved_tensors, trainable_parameters

    selected = {
        name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)
    }
    places = dict(module.named_parameters()) | dict(module.named_buffers())
    unknown = sorted(selected.keys() - places.keys())
    missing = sorted((trainable_parameters(module).keys() | saved_tensors(module).keys()) - selected.keys())
    shapes = {name: tuple(getattr(place, "ds_shape", place.shape)) for name, place in places.items()}
    wrong = [
        f"{n}: {tuple(t.shape)} for {shapes[n]}"
        for n, t in selected.items()
        if n in shapes and tuple(t.shape) != shapes[n]
    ]
    for problem, names in (
        ("has no place for", unknown),
        ("gets no value for", missing),
        ("has other shapes for", wrong),
    ):
        if names:
            raise UsageError(
                f"the weights do not fit: the model {problem} {len(names)} tensors, first {names[:3]}",
                where=where,
                remedy="use the configuration that the weights were trained with",
            )
    install_tensors(module, selected)
