"""Checkpoints that know no number of ranks and no ZeRO stage, and are either whole or not there.

``step-N/`` holds ``weights.safetensors`` (trainable weights and buffers, fp32), ``moments.safetensors``
(Adam, by parameter name), ``state.json`` (step, stage, place in the data), what the stage puts beside them,
and ``COMPLETE`` with the bytes and the CRC-32 of each file. It is written beside its place and renamed.
DeepSpeed's own checkpoints are tied to the number of ranks and are pickles; ours cost one gather of the
trainable part, which the frozen language model is no part of. A checkpoint made of another one of the same
step is ``step-N.1/`` and counts as later: so that no moment is without a whole one, none is ever written
over.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
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
"""Training goes on meanwhile, and a job that is asked to leave has about as long."""
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
log = logging.getLogger(__name__)

Beside = Callable[[Path], object]
"""Writes a stage's own files into a checkpoint's unfinished folder; they belong to it like the others."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a run stands: everything of a checkpoint that is no tensor.

    ``order`` is the loader's state (seed, epoch, samples consumed); ``version`` is that of the checkpoint's
    form. ``best`` is the best validated value so far and the checkpoint that reached it;
    ``validation_left`` says that this step is still to be validated: the job was asked to leave before.
    """

    stage: str
    step: int
    order: dict[str, int] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    validation_left: bool = False
    version: int = VERSION


def save(
    run: Path,
    state: TrainingState,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    *,
    keep: int,
    beside: Beside | None = None,
    revision: int = 0,
) -> Path:
    """Write ``run/checkpoints/step-N`` atomically; one rank calls it.

    Then all but the last ``keep`` and the best are removed.
    ``revision``: above 0 it is ``step-N.REVISION``, made of an earlier one of the same step.

    Raises:
        UsageError: the disk is full; nothing half-written stays.
        StorageError: the storage was away for longer than ``SAVE_TIMEOUT_S``; earlier checkpoints stay.
    """
    folder = run / "checkpoints" / name_of(state.step, revision)
    partial = folder.with_name(f".{folder.name}.partial")

    def write() -> None:
        for left in folder.parent.glob(".step-*.partial"):  # by a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        size_mb = sum(tensor.nbytes for tensor in (*weights.values(), *moments.values())) / 1e6
        unwritten = f"no checkpoint of step {state.step} was written, which takes {size_mb:.1f} MB"
        with report_full_disk(folder, f"the disk is full: {unwritten}"):
            partial.mkdir(parents=True)
            if beside is not None:
                beside(partial)
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


def name_of(step: int, revision: int = 0) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08d}" + (f".{revision}" if revision else "")


def revision_of(folder: Path) -> int:
    """Return how often a checkpoint of the same step was made anew; 0 for the one that training saved."""
    found = _NAME.fullmatch(folder.name)
    return int(found[2] or 0) if found else 0


def _write(
    folder: Path, state: TrainingState, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> None:
    from safetensors.torch import save_file

    save_file(dict(weights), folder / WEIGHTS)
    save_file(dict(moments), folder / MOMENTS_FILE)
    (folder / STATE).write_text(json.dumps(asdict(state), indent=1))
    content = {path.name: _content_of(path) for path in sorted(folder.iterdir())}
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
    """Return the checkpoint folders of a run by step and revision, whole or not."""
    found = {path: _NAME.fullmatch(path.name) for path in (run / "checkpoints").glob("step-*")}
    places = {path: (int(name[1]), int(name[2] or 0)) for path, name in found.items() if name}
    return sorted(places, key=lambda path: places[path])


def last_checkpoint(run: Path) -> Path | None:
    """Return the last whole checkpoint of a run, or None; damaged ones are passed over with a warning."""
    for folder in reversed(_folders(run)):
        if _is_whole(folder):
            return folder
        log.warning("checkpoint %s is damaged or half-written; an earlier one is used", folder)
    return None


def best_checkpoint(run: Path) -> Path:
    """Return the checkpoint of the lowest validated value so far, as the last whole one tells it.

    Raises:
        UsageError: there is no whole checkpoint, none was validated, or the best one is damaged.
    """
    best = read_state(whole_checkpoint(run)).best
    if best is None:
        raise UsageError(
            "no checkpoint of this run was validated, so none is the best",
            where=run,
            remedy="take the last one, or train with a dev split and --training.validate-every",
        )
    folder = run / "checkpoints" / str(best["checkpoint"])
    if not _is_whole(folder):
        raise UsageError("the best checkpoint is damaged", where=folder, remedy="take the last one")
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether every file is there, with the bytes that were written: reads them all once.

    Checkpoints of before they held checksums tell sizes only.
    """

    def check() -> bool:
        content = json.loads((folder / COMPLETE).read_text())
        return bool(content) and all(_holds(folder / name, known) for name, known in content.items())

    try:
        return wait_for_storage(check, folder)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _holds(path: Path, known: int | dict[str, int]) -> bool:
    if isinstance(known, int):
        return path.stat().st_size == known
    return path.stat().st_size == known.get("bytes") and _content_of(path) == known


def _content_of(path: Path) -> dict[str, int]:
    """Return size and CRC-32 of a file: what tells damage apart, not what keeps an enemy out."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": crc}


def read_state(folder: Path, *, stage: str | None = None) -> TrainingState:
    """Read ``state.json`` of a checkpoint.

    Raises:
        UsageError: it is of another version, or of another stage than ``stage``.
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
            f"the run is of stage {state.stage!r}, not {stage!r}",
            where=folder.parents[1],
            remedy="give the run folder of the right stage, or another folder for a new run",
        )
    return state


def load_moments(folder: Path) -> dict[str, Tensor]:
    """Read the Adam moments of a checkpoint, by ``exp_avg/NAME`` and ``exp_avg_sq/NAME``."""
    return _load_tensors(folder / MOMENTS_FILE)


def whole_checkpoint(run: Path) -> Path:
    """Return the last whole checkpoint of a run, or ``run`` itself if it is a checkpoint's folder.

    Raises:
        UsageError: there is none.
    """
    folder = run if (run / COMPLETE).exists() else last_checkpoint(run)
    if folder is None:
        raise UsageError(
            "there is no whole checkpoint", where=run / "checkpoints", remedy="train this run first"
        )
    return folder


def load_weights(run: Path, *, stage: str | None = None) -> dict[str, Tensor]:
    """Read weights and buffers of a run's last whole checkpoint, by name, on the CPU, without DeepSpeed.

    ``run`` may also be a checkpoint folder itself.

    Raises:
        UsageError: there is no whole checkpoint, or it is of another stage or version.
    """
    folder = whole_checkpoint(run)
    read_state(folder, stage=stage)
    return _load_tensors(folder / WEIGHTS)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return wait_for_storage(lambda: load_file(path), path)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"the checkpoint cannot be read: {error}", where=path, remedy="remove this folder"
        ) from error


def install_weights(
    module: nn.Module, weights: Mapping[str, Tensor], *, where: object, prefix: str = ""
) -> None:
    """Copy the weights that start with ``prefix`` into ``module``, named without it; all must fit.

    What a checkpoint never holds (frozen parts) stays as it is in the module.

    Raises:
        UsageError: a tensor has no place in the module, has another shape, or a trainable parameter gets
        none.
    """
    from signllm.training.partitions import install, kept_tensors, trainable_parameters

    given = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    places = dict(module.named_parameters()) | dict(module.named_buffers())
    unknown = sorted(given.keys() - places.keys())
    missing = sorted((trainable_parameters(module).keys() | kept_tensors(module).keys()) - given.keys())
    shapes = {name: tuple(getattr(place, "ds_shape", place.shape)) for name, place in places.items()}
    wrong = [
        f"{n}: {tuple(t.shape)} for {shapes[n]}"
        for n, t in given.items()
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
    install(module, given)
