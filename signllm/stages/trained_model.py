"""Load what a run of stage 3 or an export contains: its words, its encoder, or the complete SignLLM.

Word offsets are meaningless without their words, so every checkpoint contains both. ``run/words.json`` equals
that of the last checkpoint; older checkpoints, which contain no words, use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from signllm.config import FinetuneConfig, load_config
from signllm.cra.word_codebook import WordCodebook
from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.models.language_model.adapters import BASE_CLASS, IN_MODEL, from_peft, is_adapter
from signllm.models.language_model.loading import read_configuration
from signllm.models.language_model.model_files import model_folder
from signllm.models.sign_llm import SignLLM, build_sign_llm
from signllm.models.vq_sign.vq_sign import VQSign
from signllm.stages.encoding import build_trained_vq_sign
from signllm.training.checkpoint import complete_checkpoint, install_weights, load_weights
from signllm.training.engine import TrainingConfig, deepspeed_settings, import_deepspeed
from signllm.training.zero3 import install_gather_hooks

STAGE = "finetune"
WEIGHTS, ADAPTER_FOLDER, LANGUAGE_MODEL = "model.safetensors", "adapter", "language-model"
"""Files of an export: what was trained except adapters, the adapters in peft's format, the language model."""


def load_words(checkpoint: Path, run: Path) -> WordCodebook:
    """Return the words that a checkpoint of a run was trained with.

    Raises:
        UsageError: they are missing or damaged.
    """
    return WordCodebook.load(checkpoint if (checkpoint / "words.json").is_file() else run)


@dataclass(frozen=True)
class TrainedModel:
    """Everything that was trained, without the frozen language model.

    Attributes:
        config: configuration, with a language model that this machine can find if it has it.
        words: the words that the weights belong to.
        weights: tensors on the CPU, by name.
        where: source of the weights: a checkpoint's folder, or the folder of an export.
    """

    config: FinetuneConfig
    words: WordCodebook
    weights: Mapping[str, Tensor]
    where: Path


def read_trained_model(folder: Path, checkpoint: Path | None = None) -> TrainedModel:
    """Read an export, or a run of stage 3 at a checkpoint (by default its last complete one).

    Raises:
        UsageError: the folder is neither a run of stage 3 nor an export, has another version, or is damaged.
    """
    config = _with_recorded_prompts(load_config(folder, FinetuneConfig))
    if (folder / WEIGHTS).is_file():
        return TrainedModel(
            with_bundled_language_model(config, folder),
            WordCodebook.load(folder),
            _read_exported_weights(folder),
            folder,
        )
    checkpoint = checkpoint or complete_checkpoint(folder)
    weights = load_weights(checkpoint, stage=STAGE)
    return TrainedModel(config, load_words(checkpoint, folder), weights, checkpoint)


def _with_recorded_prompts(config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the prompt settings of the training, also of an older run."""
    model = config.sign_llm.language_model.with_older_defaults()
    return replace(config, sign_llm=replace(config.sign_llm, language_model=model))


def with_bundled_language_model(config: FinetuneConfig, folder: Path) -> FinetuneConfig:
    """Return the configuration of an export with the language model that it contains, if it contains one."""
    if not (folder / LANGUAGE_MODEL / "config.json").is_file():
        return config
    return config.with_llm(str(folder / LANGUAGE_MODEL))


def _read_exported_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of an export; adapters get the names that they had in training."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        weights = load_file(path)
        path = folder / ADAPTER_FOLDER / "adapter_model.safetensors"
        adapters = load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"the weights cannot be read: {error}", where=path, remedy="export the run again"
        ) from None
    return weights | from_peft(adapters)


def load_encoder(config: FinetuneConfig, checkpoint: Path) -> VQSign:
    """Return VQ-Sign with the weights of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        UsageError: the configuration has no encoder, or the weights do not fit.
    """
    if config.sign_llm.vq_sign is None:
        raise UsageError("the run records no encoder", where="sign_llm.vq_sign", remedy="fine-tune again")
    weights = load_weights(checkpoint, stage=STAGE)
    return build_trained_vq_sign(config.sign_llm.vq_sign, weights, where=checkpoint, prefix="vq_sign.")


def load_sign_llm(
    run: Path, checkpoint: Path | None = None, *, zero_file: str | None = None, llm: str | None = None
) -> SignLLM:
    """Return the SignLLM of an export or of a checkpoint of stage 3, in evaluation mode.

    Args:
        run: folder of the run or export.
        checkpoint: checkpoint of the run; None takes the last complete one.
        zero_file: name of a ZeRO-3 file: the language model is partitioned over the ranks, each on its
            device, and all ranks must then generate equally often. None loads the full model on the CPU.
        llm: folder of the language model, or its name on the hub if it was downloaded; None takes the
            recorded one.

    Raises:
        UsageError: the folder is not a run of stage 3, there is no complete checkpoint, the language model is
            missing or is not the one used in training, the weights do not fit, or the ZeRO file has another
            stage.
    """
    trained = read_trained_model(run, checkpoint)
    settings = None if zero_file is None else _zero3_settings(zero_file)
    config = trained.config.with_llm(llm).sign_llm
    _require_language_model(config.language_model.path)
    _require_base_of_adapters(run, config.language_model.path, trained_with=trained.config)
    model = build_sign_llm(config, trained.words, deepspeed=settings)
    _require_matching_model(model, trained)
    install_weights(model, trained.weights, where=trained.where)
    if settings is not None:
        ranks = start_distributed()
        for name, part in model.named_children():
            if name != "language_model":
                part.to(ranks.device)
        if model.language_model.virtual_tokens is not None:
            model.language_model.virtual_tokens.to(ranks.device)
        model.text_embeddings = model.text_embeddings.to(ranks.device)
        install_gather_hooks(model.language_model.model, settings)
    return model.eval()


def _require_language_model(path: str) -> None:
    """Check that the language model is on this machine; another user of a run may have it elsewhere."""
    try:
        model_folder(path)
    except UsageError as error:
        elsewhere = "or name its folder: --llm FOLDER, from Python signllm.load(..., llm=FOLDER)"
        raise UsageError(error.what, where=error.where, remedy=f"{error.remedy}; {elsewhere}") from None


def _require_base_of_adapters(run: Path, path: str, *, trained_with: FinetuneConfig) -> None:
    """Check that an export's adapters were trained in this class of language model, before loading it."""
    recorded = run / ADAPTER_FOLDER / "adapter_config.json"
    if not recorded.is_file():
        return
    base = (json.loads(recorded.read_text(encoding="utf-8")).get("auto_mapping") or {}).get(BASE_CLASS)
    classes = read_configuration(path).architectures or [None]
    if None not in (base, classes[0]) and base != classes[0]:
        raise _wrong_model_error(
            f"the adapters were trained in a {base}, this is a {classes[0]}", path, trained_with=trained_with
        )


def _require_matching_model(model: SignLLM, trained: TrainedModel) -> None:
    """Check that the language model has the width and the adapters that the weights are for."""
    path = model.config.language_model.path
    projector = trained.weights.get("projector.second.weight")
    if projector is not None and len(projector) != model.language_model.width:
        raise _wrong_model_error(
            f"the projector was trained for vectors of width {len(projector)}, this language model reads "
            f"{model.language_model.width}",
            path,
            trained_with=trained.config,
        )
    shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}
    adapters = {name: tuple(tensor.shape) for name, tensor in trained.weights.items() if is_adapter(name)}
    unknown = sorted(name for name, shape in adapters.items() if shapes.get(name) != shape)
    if unknown:
        raise _wrong_model_error(
            f"{len(unknown)} of {len(adapters)} adapters have no place in this language model, first "
            f"{unknown[0].removeprefix(IN_MODEL)}",
            path,
            trained_with=trained.config,
        )


def _wrong_model_error(what: str, path: str, *, trained_with: FinetuneConfig) -> UsageError:
    return UsageError(
        what,
        where=path,
        remedy=f"use the language model of the training: {trained_with.sign_llm.language_model.path}",
    )


def _zero3_settings(zero_file: str) -> dict[str, Any]:
    import_deepspeed()  # joins the process group before zero.Init reads the number of ranks
    world = start_distributed().world
    settings = deepspeed_settings(TrainingConfig(steps=1, batch_size=world, deepspeed=zero_file), world=world)
    if settings["zero_optimization"]["stage"] != 3:
        raise UsageError(
            f"{zero_file} does not partition the language model",
            where="--deepspeed",
            remedy="give zero3 or a file of stage 3, or leave it out to have the full model on each rank",
        )
    return settings
