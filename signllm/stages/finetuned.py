"""What a run of stage 3 or an export holds: its words, its encoder, or all of SignLLM.

Word offsets mean nothing without the words they are of, so every checkpoint holds both. ``run/words.json`` is
the same as in the last one, for whoever reads the run, and serves checkpoints of before they held words.
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
from signllm.errors import UsageError
from signllm.models.adapters import BASE_CLASS, IN_MODEL, from_peft, is_adapter
from signllm.models.language_model_loading import read_configuration
from signllm.models.model_files import model_folder
from signllm.models.sign_llm import SignLLM, build_sign_llm
from signllm.models.vq_sign import VQSign
from signllm.stages.encoding import vq_sign_of
from signllm.training.checkpoint import install_weights, load_weights, whole_checkpoint
from signllm.training.engine import (
    TrainingConfig,
    deepspeed_settings,
    import_deepspeed,
    start_distributed,
)
from signllm.training.zero3 import gather_when_called

STAGE = "finetune"
WEIGHTS, ADAPTER_FOLDER, LANGUAGE_MODEL = "model.safetensors", "adapter", "language-model"
"""In an export: all that was trained but adapters; these, in peft's format; a copy of the language model."""


def words_of(checkpoint: Path, run: Path) -> WordCodebook:
    """Return the words that a checkpoint of a run was trained with.

    Raises:
        UsageError: they are missing or broken.
    """
    return WordCodebook.load(checkpoint if (checkpoint / "words.json").is_file() else run)


@dataclass(frozen=True)
class Trained:
    """What was trained, apart from the frozen language model.

    Attributes:
        config: with a language model that this machine can find, if it has it.
        words: that the weights belong to.
        weights: on the CPU, by name.
        where: they come from: a checkpoint's folder, or a file.
    """

    config: FinetuneConfig
    words: WordCodebook
    weights: Mapping[str, Tensor]
    where: Path


def read_trained(folder: Path, checkpoint: Path | None = None) -> Trained:
    """Read a run of stage 3, its last whole checkpoint by default, or an export.

    Raises:
        UsageError: neither a run of stage 3 nor an export, of another version, or damaged.
    """
    config = _with_older_prompts(load_config(folder, FinetuneConfig))
    if (folder / WEIGHTS).is_file():
        return Trained(
            with_model_inside(config, folder), WordCodebook.load(folder), _exported(folder), folder
        )
    checkpoint = checkpoint or whole_checkpoint(folder)
    weights = load_weights(checkpoint, stage=STAGE)
    return Trained(config, words_of(checkpoint, folder), weights, checkpoint)


def _with_older_prompts(config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration of a run, its language model prompted as it was when the run was trained."""
    model = config.sign_llm.language_model.with_older_defaults()
    return replace(config, sign_llm=replace(config.sign_llm, language_model=model))


def with_model_inside(config: FinetuneConfig, folder: Path) -> FinetuneConfig:
    """Return the configuration of an export with the language model that lies in it, if one does."""
    if not (folder / LANGUAGE_MODEL / "config.json").is_file():
        return config
    return config.with_llm(str(folder / LANGUAGE_MODEL))


def _exported(folder: Path) -> dict[str, Tensor]:
    """Read the weights of an export; those of adapters get the names that they had in training."""
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
    """Return VQ-Sign as a checkpoint left it, in evaluation mode, on the CPU.

    Raises:
        UsageError: the configuration names no encoder, or the weights do not fit.
    """
    if config.sign_llm.vq_sign is None:
        raise UsageError("the run names no encoder", where="sign_llm.vq_sign", remedy="fine-tune again")
    weights = load_weights(checkpoint, stage=STAGE)
    return vq_sign_of(config.sign_llm.vq_sign, weights, where=checkpoint, prefix="vq_sign.")


def load_sign_llm(
    run: Path, checkpoint: Path | None = None, *, zero_file: str | None = None, llm: str | None = None
) -> SignLLM:
    """Return the SignLLM of an export, or of a fine-tuning run as a checkpoint left it, in evaluation mode.

    Args:
        run: its folder.
        checkpoint: of a run, by default the last whole one.
        zero_file: of ZeRO-3: the language model is partitioned over the ranks, each on its device, and all
            ranks then generate equally often. None: the model is whole, on the CPU.
        llm: the language model's folder, or its name on the hub if it was fetched; None: as it is recorded.

    Raises:
        UsageError: not a run of stage 3, no whole checkpoint, no language model or another one than it was
            trained with, weights that do not fit, a file of another ZeRO stage.
    """
    found = read_trained(run, checkpoint)
    settings = None if zero_file is None else _zero3_settings(zero_file)
    config = found.config.with_llm(llm).sign_llm
    _require_language_model(config.language_model.path)
    _require_base_of_adapters(run, config.language_model.path, trained_with=found.config)
    model = build_sign_llm(config, found.words, deepspeed=settings)
    _require_fit(model, found)
    install_weights(model, found.weights, where=found.where)
    if settings is not None:
        ranks = start_distributed()
        for name, part in model.named_children():
            if name != "language_model":
                part.to(ranks.device)
        if model.language_model.virtual_tokens is not None:
            model.language_model.virtual_tokens.to(ranks.device)
        model.text_embeddings = model.text_embeddings.to(ranks.device)
        gather_when_called(model.language_model.model, settings)
    return model.eval()


def _require_language_model(path: str) -> None:
    """Check that the language model is on this machine; whoever is handed a run may have it elsewhere."""
    try:
        model_folder(path)
    except UsageError as error:
        elsewhere = "or say where it lies: --llm FOLDER, from Python signllm.load(..., llm=FOLDER)"
        raise UsageError(error.what, where=error.where, remedy=f"{error.remedy}; {elsewhere}") from None


def _require_base_of_adapters(run: Path, path: str, *, trained_with: FinetuneConfig) -> None:
    """Check the adapters of an export against the class of the language model, before that is loaded."""
    recorded = run / ADAPTER_FOLDER / "adapter_config.json"
    if not recorded.is_file():
        return
    base = (json.loads(recorded.read_text(encoding="utf-8")).get("auto_mapping") or {}).get(BASE_CLASS)
    found = read_configuration(path).architectures or [None]
    if None not in (base, found[0]) and base != found[0]:
        raise _other_model(
            f"the adapters were trained in a {base}, this is a {found[0]}", path, trained_with=trained_with
        )


def _require_fit(model: SignLLM, found: Trained) -> None:
    """Check that the language model is of the width and has the adapters that the weights are for."""
    path = model.config.language_model.path
    written = found.weights.get("projector.second.weight")
    if written is not None and len(written) != model.language_model.width:
        raise _other_model(
            f"the projector was trained for vectors of width {len(written)}, this language model reads "
            f"{model.language_model.width}",
            path,
            trained_with=found.config,
        )
    own = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}
    adapters = {name: tuple(tensor.shape) for name, tensor in found.weights.items() if is_adapter(name)}
    strange = sorted(name for name, shape in adapters.items() if own.get(name) != shape)
    if strange:
        raise _other_model(
            f"{len(strange)} of {len(adapters)} adapters have no place in this language model, first "
            f"{strange[0].removeprefix(IN_MODEL)}",
            path,
            trained_with=found.config,
        )


def _other_model(what: str, path: str, *, trained_with: FinetuneConfig) -> UsageError:
    return UsageError(
        what,
        where=path,
        remedy=f"give the language model it was trained with: {trained_with.sign_llm.language_model.path}",
    )


def _zero3_settings(zero_file: str) -> dict[str, Any]:
    import_deepspeed()  # joined to the ranks before zero.Init asks how many there are
    world = start_distributed().world
    settings = deepspeed_settings(TrainingConfig(steps=1, batch_size=world, deepspeed=zero_file), world=world)
    if settings["zero_optimization"]["stage"] != 3:
        raise UsageError(
            f"{zero_file} does not partition the language model",
            where="--deepspeed",
            remedy="give zero3 or a file of stage 3, or nothing for a whole model on each rank",
        )
    return settings
