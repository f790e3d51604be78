"""Building a language model: its class, weights, tokenizer, prompt and adapters, from its configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from signllm.models.language_model.adapters import add_lora, build_virtual_tokens
from signllm.models.language_model.causal_model import CausalLanguageModel
from signllm.models.language_model.encoder_decoder_model import EncoderDecoderLanguageModel
from signllm.models.language_model.language_model import LanguageModel, LanguageModelConfig
from signllm.models.language_model.loading import (
    load_model,
    load_tokenizer,
    model_type,
    read_configuration,
    recompute_activations,
)
from signllm.models.language_model.model_files import model_folder
from signllm.models.language_model.prompt import Prompt, find_family

log = logging.getLogger(__name__)


def build_language_model(
    config: LanguageModelConfig, *, deepspeed: Mapping[str, Any] | None = None
) -> LanguageModel:
    """Load a language model with its tokenizer and prompt; its own configuration determines the class.

    Args:
        config: configuration of the language model.
        deepspeed: settings of the DeepSpeed engine; with ZeRO-3 the weights are partitioned as they are
            loaded.

    Raises:
        UsageError: there is no such model, or its tokenizer is missing.
    """
    model_class = select_language_model_class(
        is_encoder_decoder=read_configuration(config.path).is_encoder_decoder
    )
    tokenizer = load_tokenizer(config.path)
    model: Any = load_model(
        config.path,
        model_class.kind,
        dtype=config.dtype,
        attention=config.attention,
        quantize=config.quantize,
        deepspeed=deepspeed,
    )
    if config.gradient_checkpointing:
        recompute_activations(model)
    prompt = build_prompt(config, tokenizer, model_type(model))
    learnt = None
    if config.lora is not None:
        model = add_lora(model, config.lora)
    if config.prompt_tuning is not None:
        folder = str(model_folder(config.path))
        learnt = build_virtual_tokens(model, config.prompt_tuning, tokenizer=folder)
    return model_class(config, model, tokenizer, prompt, virtual_tokens=learnt)


def build_prompt(config: LanguageModelConfig, tokenizer: Any, model_type: str) -> Prompt:
    """Return the prompt of a model whose ``transformers`` model type is ``model_type``.

    If a run has recorded a chat template that differs from the tokenizer's, the recorded one is used and a
    warning is logged.
    """
    prompt = Prompt(
        tokenizer,
        find_family(model_type),
        text=config.prompt,
        separator=config.separator,
        chat=config.chat,
        in_target=config.prompt_language == "target",
        chat_template=config.chat_template,
        day=config.date,
        thinking=config.thinking,
        end_of_turn=config.end_of_turn,
    )
    own = getattr(tokenizer, "chat_template", None)
    if prompt.template is not None and own and prompt.template.text not in (own, *_template_texts(own)):
        log.warning(
            "the prompts use the chat template of the settings, which differs from the tokenizer's in %s: it "
            "was given as an option, or the tokenizer has changed since the run began",
            config.path,
        )
    return prompt


def _template_texts(templates: Any) -> list[str]:
    """Return the texts of a tokenizer's named chat templates; none if it has at most one."""
    return list(templates.values()) if isinstance(templates, dict) else []


def select_language_model_class(*, is_encoder_decoder: bool) -> type[LanguageModel]:
    """Return the class for models with an encoder that reads the sign words, or for causal models."""
    return EncoderDecoderLanguageModel if is_encoder_decoder else CausalLanguageModel
