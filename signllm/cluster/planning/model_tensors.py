"""The tensors of a run, derived from its configuration with torch's meta device, without weights.

Nothing is downloaded: the configuration of the language model, and of an image backbone other than the usual
ones, must be on this machine. Parts without a configuration are left out and reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from signllm.cluster.planning.zero_costs import Weight
from signllm.config import FinetuneConfig, PretrainConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.models.language_model.adapters import add_lora
from signllm.models.language_model.language_model import LanguageModelConfig
from signllm.models.language_model.loading import DTYPES, disable_dropout, read_configuration
from signllm.models.language_model.model_files import model_folder
from signllm.models.projector import Projector
from signllm.models.vq_sign.backbone import SHORT_NAMES
from signllm.models.vq_sign.visual_encoder import VisualEncoderConfig
from signllm.models.vq_sign.vq_sign import VQSign, VQSignConfig
from signllm.models.word_vectors import WordVectors
from signllm.stages.phases import training_phases
from signllm.training.zero3 import frozen_blocks, unpartitioned_ids

BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {
        "model_type": "resnet",
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    },
    "resnet50": {"model_type": "resnet"},
    "dinov2-small": {"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "image_size": 518},
}
"""Shapes of the backbones with a short name, for machines that have not downloaded them."""


@dataclass(frozen=True)
class Phase:
    """A phase of training with an engine of its own.

    Attributes:
        name: name of the phase; empty if a stage has only one.
        weights: weights of its model.
        missing: parts that ``weights`` lacks, with reasons.
    """

    name: str
    weights: tuple[Weight, ...]
    missing: tuple[str, ...]


def phase_tensors(
    config: PretrainConfig | FinetuneConfig, *, words: WordCodebook | None = None
) -> list[Phase]:
    """Return the phases of a stage, with the tensors of each.

    Args:
        config: configuration of stage 1, or of stage 3 with the encoder of its ``init`` run if that is known.
        words: words of that run; None if unknown.
    """
    missing: list[str] = []
    if isinstance(config, PretrainConfig):
        with torch.device("meta"):
            encoder = _vq_sign(config.vq_sign, missing)
        weights = () if encoder is None else tuple(list_weights(encoder))
        return [Phase("", weights, tuple(missing))]
    model = sign_llm_parts(config, words, missing)
    result = []
    for name, training in zip(("on recorded characters", "joint"), training_phases(config), strict=True):
        if training is None:
            continue
        if "vq_sign" in model:
            set_trained(model["vq_sign"], joint=name == "joint")
        result.append(Phase(name, tuple(list_weights(model)), tuple(missing)))
    return [replace(result[0], name="")] if len(result) == 1 else result


def set_trained(vq_sign: Any, *, joint: bool) -> None:
    """Freeze the encoder for the phase on recorded characters, or make it trainable, as the stage does."""
    vq_sign.requires_grad_(joint)
    vq_sign.saved_when_frozen = not joint
    if vq_sign.config.encoder.freeze_backbone:
        vq_sign.encoder.backbone.requires_grad_(False)


def list_weights(model: nn.Module) -> list[Weight]:
    """Return the weights of a model, on the meta device or a real one, in the model's order."""
    unpartitioned = unpartitioned_ids(model)
    blocks = {id(p): number for number, block in enumerate(frozen_blocks(model)) for p in block.parameters()}
    distances = dict(_distances(model, unpartitioned, blocks))
    quantizable = _packed(model)
    return [
        Weight(
            name=name,
            elements=_elements(p),
            element_bytes=p.element_size(),
            trained=p.requires_grad,
            stays_gathered=id(p) in unpartitioned,
            block=blocks.get(id(p)),
            until_backward=distances.get(id(p)),
            packs=id(p) in quantizable and not p.requires_grad,
        )
        for name, p in model.named_parameters()
    ]


def _packed(model: nn.Module) -> set[int]:
    """Return the ids of the weights of linear layers in the language model's blocks; its head is in none."""
    ids: set[int] = set()
    for name, part in model.named_modules():
        if name.startswith("language_model.") and isinstance(part, nn.ModuleList):
            maps = (inner for inner in part.modules() if type(inner).__name__ in ("Linear", "Conv1D"))
            ids |= {id(inner.weight) for inner in maps}
    return ids


def _distances(
    model: nn.Module, unpartitioned: set[int], blocks: dict[int, int]
) -> Iterator[tuple[int, int]]:
    """Yield, for each frozen tensor that the backward pass needs, the elements visited until then.

    A block is needed again when the backward pass reaches it, so what follows it in the model is visited
    once. DeepSpeed asks for a single layer outside of blocks later, so what follows is visited twice. A table
    of embeddings is used without gradient.
    """
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    outer = [p for p in model.parameters() if id(p) not in unpartitioned]
    after = 0
    in_block = 0
    current: int | None = None
    for p in reversed(outer):
        block = blocks.get(id(p))
        if block is None or block != current:
            after, in_block, current = after + in_block, 0, block
        if id(p) not in tables:
            yield id(p), after if block is not None else 2 * after
        in_block += _elements(p)


def _elements(p: Any) -> int:
    return int(getattr(p, "ds_numel", p.numel()))


def sign_llm_parts(config: FinetuneConfig, words: WordCodebook | None, missing: list[str]) -> nn.ModuleDict:
    """Return the parts of SignLLM that are known on this machine, by their names in SignLLM.

    Args:
        config: configuration of stage 3.
        words: words that segment the characters; None if unknown.
        missing: gets a line for each part that is not known.
    """
    parts: dict[str, nn.Module] = {}
    vq_sign = config.sign_llm.vq_sign
    llm = _language_model(config.sign_llm.language_model, missing)
    with torch.device("meta"):
        encoder = None if vq_sign is None else _vq_sign(vq_sign, missing)
        if encoder is not None:
            parts["vq_sign"] = encoder
        if llm is not None:
            parts["language_model"] = nn.ModuleDict({"model": llm, **_learnt_prompt(config, llm)})
        if vq_sign is None:
            missing.append("encoder, word vectors and projector: the run of --init is not on this machine")
            return nn.ModuleDict(parts)
        width = vq_sign.encoder.width
        if words is None:
            missing.append("offsets of composed words: --init has no words on this machine")
            words = no_words(vq_sign.quantizer.codes)
        if vq_sign.quantizer.update != "none":
            parts["word_vectors"] = WordVectors(words, width)
        if llm is not None:
            embedding: Any = llm.get_input_embeddings()  # type: ignore[operator]
            parts["projector"] = Projector(config.sign_llm.projector, width, int(embedding.embedding_dim))
        else:
            missing.append("projector: its width is the language model's")
    return nn.ModuleDict(parts)


def _learnt_prompt(config: FinetuneConfig, llm: Any) -> dict[str, nn.Module]:
    tuned = config.sign_llm.language_model.prompt_tuning
    if tuned is None:
        return {}
    learnt = nn.Embedding(tuned.tokens, int(llm.get_input_embeddings().embedding_dim))
    return {"virtual_tokens": nn.ModuleDict({"embedding": learnt})}


def no_words(codes: int) -> WordCodebook:
    """Return words as they are before composition: every character is a word."""
    frequencies = (1,) * (codes + 1)
    return WordCodebook(codes=codes, words=(), frequencies=frequencies, alpha=None, codebook="unknown")


def _vq_sign(config: VQSignConfig, missing: list[str]) -> VQSign | None:
    settings = _backbone_settings(config.encoder)
    if settings is None:
        missing.append(f"encoder: the image backbone {config.encoder.backbone} is not on this machine")
        return None
    encoder = replace(config.encoder, backbone_config=settings, backbone_weights=None)
    return VQSign(replace(config, encoder=encoder))


def _backbone_settings(config: VisualEncoderConfig) -> dict[str, Any] | None:
    """Return the configuration of the image backbone; None if it is not on this machine."""
    if config.backbone_config is not None:
        return config.backbone_config
    if config.backbone in BACKBONES:
        return BACKBONES[config.backbone]
    from transformers import AutoConfig

    try:
        name = SHORT_NAMES.get(config.backbone, config.backbone)
        settings: dict[str, Any] = AutoConfig.from_pretrained(name, local_files_only=True).to_dict()
    except (OSError, ValueError):
        return None
    return settings


def _language_model(config: LanguageModelConfig, missing: list[str]) -> nn.Module | None:
    """Return the language model without weights, frozen, with its adapters."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        model_folder(config.path)
    except UsageError:
        missing.append(f"language model: {config.path or 'no folder'} is not on this machine")
        return None
    settings = disable_dropout(read_configuration(config.path))
    auto = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model: nn.Module = auto.from_config(settings, dtype=DTYPES[config.dtype])
            model.requires_grad_(False)
            return model if config.lora is None else add_lora(model, config.lora)
    except ValueError as error:
        raise UsageError(
            f"this is not a configuration of a language model: {str(error).strip().splitlines()[0]}",
            where=config.path,
            remedy="give the folder of a language model",
        ) from None
