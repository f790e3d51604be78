"""The configurations of the three stages, recipes, and the ``config.json`` of a run.

A configuration is a tree of frozen dataclasses, each defined next to the class that it configures. Rules
between settings of different classes are checked here, before anything is loaded. ``config.json`` records the
complete configuration with the stage and the version of the run folder's format, so that a run of another
stage or version is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from signllm.atomic_files import atomic_write
from signllm.cra.composition import WordsConfig
from signllm.data.loading.mixture import DatasetRecord, list_dataset_differences
from signllm.data.loading.pipeline import DataConfig
from signllm.errors import UsageError
from signllm.models.sign_llm import GenerationConfig, SignLLMConfig
from signllm.models.vq_sign.vq_sign import VQSignConfig
from signllm.training.engine import TrainingConfig
from signllm.validation import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    from_plain,
    to_plain,
    validated,
)
from signllm.version import VERSION

RUN_FORMAT = 1
"""Version of the run folder's layout, increased when older programs could no longer read it."""

RECORDED_LATER = tuple(
    f"sign_llm.language_model.{name}" for name in ("chat", "chat_template", "date", "thinking", "end_of_turn")
)
"""Settings that runs record since 2026-12 when training begins; an older run gets them when it is resumed."""
MAY_CHANGE = (
    "data.workers",
    "data.max_frames_per_batch",
    "data.storage_timeout_s",
    "training.batch_size",
    "training.accumulation",
    "training.deepspeed",
    "training.epochs",
    "training.steps",
    "training.log_every",
    "training.save_every",
    "training.validate_every",
    "training.keep",
    "training.keep_best",
    "training.patience",
    "training.profile",
    "training.show",
    "training.tensorboard",
    "training.trackers",
    "vq_sign.encoder.backbone_shape",
    "sign_llm.vq_sign.encoder.backbone_shape",
)
"""Settings that may differ when a run is resumed, because they do not change what is learnt in which order.

These are how the run is carried out, how long it trains, and what older runs did not record. None of them
moves a sample in the order of an epoch, except whether there is a limit of frames at all
(:func:`_breaks_the_run`).
"""


@validated
class PretrainConfig:
    """Stage 1: VQ-Sign learns characters from video alone.

    Attributes:
        vq_sign: encoder, quantizer and context prediction.
        data: how videos are read.
        training: how the stage is trained.
    """

    vq_sign: VQSignConfig = field(default_factory=VQSignConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig


@validated
class ComposeConfig:
    """Stage 2: characters are composed into words.

    Attributes:
        words: how words are composed.
        data: how videos are read.
        batch_size: videos that each rank encodes at a time; the characters do not depend on it.
    """

    words: WordsConfig = field(default_factory=WordsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch_size: PositiveInt = 8


@validated
class FinetuneConfig:
    """Stage 3: words are aligned with a frozen LLM that writes the sentence.

    Attributes:
        sign_llm: the model; its encoder is that of the run from which it starts.
        data: how videos are read.
        training: how the joint phase is trained; its ``epochs`` count both phases.
        generation: how text is decoded when the run is evaluated.
        frozen_epochs: epochs at the beginning that train on the recorded characters, with a frozen encoder
            and no video decoded; 0 trains everything jointly from the start, as the paper does.
        frozen_learning_rate: learning rate of those epochs; None takes ``training.learning_rate``.
        character_rate: learning rate of the characters' offsets, as a multiple of the learning rate; not
            stated in the paper. An offset learns only from the videos in which its character occurs.
        word_rate: the same for the words' own offsets; 0 leaves them out. Words are rarer than characters:
            with few videos, their offsets memorise the videos.
    """

    sign_llm: SignLLMConfig = field(default_factory=SignLLMConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    frozen_epochs: NonNegativeInt = 0
    frozen_learning_rate: PositiveFloat | None = None
    character_rate: NonNegativeFloat = 1.0
    word_rate: NonNegativeFloat = 1.0
    REMOVED_SETTINGS: ClassVar[Mapping[str, tuple[object, str]]] = {"recompose_every": (0, "0.1.0")}
    """Settings that older runs record: the value that changed nothing, and the last version that had them."""

    def __post_init__(self) -> None:
        epochs = self.training.epochs
        if epochs is not None and self.frozen_epochs > epochs:
            raise UsageError(
                f"frozen_epochs is {self.frozen_epochs}, which is more than training.epochs, {epochs}",
                where="frozen_epochs",
                remedy="training.epochs counts both phases",
            )
        if self.training.precision == "bf16" and self.sign_llm.language_model.dtype == "fp32":
            raise UsageError(
                "training.precision bf16 computes everything in 16 bits, language_model.dtype is fp32",
                where="sign_llm.language_model.dtype",
                remedy="give bf16, or training.precision fp32",
            )

    def with_llm(self, path: str | None) -> FinetuneConfig:
        """Return this configuration with another language model; None returns it unchanged."""
        if path is None:
            return self
        model = dataclasses.replace(self.sign_llm.language_model, path=path)
        return dataclasses.replace(self, sign_llm=dataclasses.replace(self.sign_llm, language_model=model))


@validated
class Recipe:
    """The configurations of the three stages for one dataset."""

    pretrain: PretrainConfig
    compose: ComposeConfig
    finetune: FinetuneConfig


Config = PretrainConfig | ComposeConfig | FinetuneConfig
ConfigT = TypeVar("ConfigT", PretrainConfig, ComposeConfig, FinetuneConfig)
STAGES: dict[type[Any], str] = {
    PretrainConfig: "pretrain",
    ComposeConfig: "compose",
    FinetuneConfig: "finetune",
}


def save_config(run: Path, config: Config, datasets: Sequence[DatasetRecord] = ()) -> Path:
    """Write ``run/config.json`` atomically; one rank calls this."""
    record = {
        "stage": STAGES[type(config)],
        "format": RUN_FORMAT,
        "signllm": VERSION,
        "config": to_plain(config),
        "datasets": [to_plain(dataset) for dataset in datasets],
    }
    path = run / "config.json"
    atomic_write(path, json.dumps(record, indent=2) + "\n")
    return path


def load_config(run: Path, kind: type[ConfigT]) -> ConfigT:
    """Read the configuration of a run of the stage that ``kind`` configures.

    Raises:
        UsageError: there is no run, it belongs to another stage or format, or the file is damaged.
    """
    record = _read(run)
    if record["stage"] != STAGES[kind]:
        raise UsageError(
            f"this is a run of {record['stage']}, not of {STAGES[kind]}",
            where=run,
            remedy=f"give the folder that `signllm {STAGES[kind]} --run` wrote",
        )
    return from_plain(kind, record["config"], where=run / "config.json")


def merge_config_file(path: Path, base: Any) -> Any:
    """Return the settings of ``base`` with those of a file, as plain values that are not validated yet.

    In TOML each part of the configuration is a table: ``[training]`` and below it ``epochs = 20``.

    Args:
        path: ``config.json`` of a run, which is complete, or a JSON or TOML file that may contain a part of
            the settings.
        base: configuration of a stage, or a recipe. It provides the settings that the file does not contain.

    Raises:
        UsageError: the file is missing, damaged or of another stage.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(
            f"the configuration cannot be read: {error.strerror}",
            where=path,
            remedy="give a run's config.json or a TOML file to --config",
        ) from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UsageError(f"this is not {kind}: {error}", where=path, remedy="correct the file") from None
    if path.suffix == ".json" and isinstance(record, dict) and "config" in record:
        stage = record.get("stage")
        if isinstance(base, Recipe) and stage in STAGES.values():
            return to_plain(base) | {stage: record["config"]}
        if stage != STAGES.get(type(base)):
            raise UsageError(
                f"this is the configuration of {stage}, not of {STAGES.get(type(base), 'a stage')}",
                where=path,
                remedy=f"give the config.json of a run of {STAGES.get(type(base), 'one of the stages')}",
            )
        return record["config"]
    return _replace_settings(base, record)


def _replace_settings(config: Any, changes: Any) -> Any:
    """Return a configuration as plain values, with ``changes``: a table for each part that has settings."""
    if not isinstance(changes, dict):
        return changes
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.init}
    plain = {name: to_plain(value) for name, value in values.items()}
    for name, change in changes.items():
        is_part = dataclasses.is_dataclass(values.get(name)) and isinstance(change, dict)
        plain[name] = _replace_settings(values[name], change) if is_part else change
    return plain


def run_stage(run: Path) -> str:
    """Return the stage that wrote this run folder: ``pretrain`` or ``finetune``."""
    return str(_read(run)["stage"])


def open_run(run: Path, config: ConfigT, datasets: Sequence[DatasetRecord] = ()) -> None:
    """Start or resume a run: write its ``config.json``, or check that it has the same configuration.

    A run without a checkpoint may begin again with other settings or data, because nothing was learnt yet. A
    checkpoint's position in the data refers to the same samples only in the same order, so settings that
    decide the order must stay. Every rank checks; only rank 0 writes (``RANK`` in the environment).

    Args:
        run: the run folder.
        config: configuration of its stage.
        datasets: datasets that it trains on; empty if the order of the data does not matter.

    Raises:
        UsageError: the folder contains a run of another stage, with other settings, or with other data; the
            message names each difference with both values.
    """
    if (run / "config.json").is_file():
        begun = load_config(run, type(config))
        changed = [line for line in differences(begun, config) if _breaks_the_run(line)]
        other_data = list_dataset_differences(datasets_of(run), datasets)
        if (changed or other_data) and any(run.glob("**/checkpoints/step-*/COMPLETE")):
            what, must_stay = ("settings", changed) if changed else ("data", other_data)
            raise UsageError(
                f"this run was begun with other {what}: " + "; ".join(must_stay),
                where=run / "config.json",
                remedy=f"give the same {what} to continue it, or another --run to begin anew",
            )
    if int(os.environ.get("RANK", "0")) == 0:
        save_config(run, config, datasets)


def _breaks_the_run(difference: str) -> bool:
    """Return whether a run cannot be resumed with this change of a setting."""
    name, _, values = difference.partition(": ")
    if name == "data.max_frames_per_batch":
        return "None" in values.split(" -> ")  # any limit sorts the samples by length
    if name in RECORDED_LATER and values.startswith("None -> "):
        return False
    return name not in MAY_CHANGE


def datasets_of(run: Path) -> list[DatasetRecord]:
    """Return the datasets that a run recorded; empty for an older run that did not record them."""
    where = run / "config.json"
    return [from_plain(DatasetRecord, record, where=where) for record in _read(run).get("datasets", [])]


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Return ``a.b: before -> after`` for every setting in which two configurations of one type differ."""
    lines = []
    for item in dataclasses.fields(before):
        old, new = getattr(before, item.name), getattr(after, item.name)
        if dataclasses.is_dataclass(old) and type(old) is type(new):
            lines += differences(old, new, f"{prefix}{item.name}.")
        elif old != new:
            lines.append(f"{prefix}{item.name}: {old} -> {new}")
    return lines


def _read(run: Path) -> dict[str, Any]:
    path = run / "config.json"
    if not path.is_file():
        raise UsageError(
            "this is not a run folder: it has no config.json",
            where=run,
            remedy="give the --run folder of an earlier verb",
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        stage, version = record["stage"], record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"config.json cannot be read ({type(error).__name__}: {error})",
            where=path,
            remedy="restore the file, or begin a new run",
        ) from None
    if version != RUN_FORMAT or stage not in STAGES.values():
        raise UsageError(
            f"this run was written by signllm {record.get('signllm')} (stage {stage}, format {version}); "
            f"this is signllm {VERSION} (format {RUN_FORMAT})",
            where=path,
            remedy="use the signllm that wrote it, or run the stage again",
        )
    return dict(record)
