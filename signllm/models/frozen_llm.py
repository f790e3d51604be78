"""Load a language model so that it stays as it is: frozen, partitioned under ZeRO-3, adapters apart.

Only local folders and only safetensors are read: no name is looked up on a network, no pickle is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from signllm.errors import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in the language model, through ``peft``; not in the paper, off unless given.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapters' input.
        targets: names of the linear layers that get one.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise UsageError(
                f"lora.rank is {self.rank}, targets {self.targets}", remedy="give a rank and target layers"
            )


@contextmanager
def zero3_loading(deepspeed: Mapping[str, Any] | None, *, dtype: str) -> Iterator[None]:
    """Let ``transformers`` partition what it loads inside, under ZeRO-3; not what is built afterwards.

    DeepSpeed would give the weights the precision of the training: ``dtype`` is that of the model.
    """
    if deepspeed is None or deepspeed["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    loaded_as = {**deepspeed, "bf16": {"enabled": dtype == "bf16"}}
    known = HfDeepSpeedConfig(loaded_as)  # transformers refers to it weakly: the name keeps it alive
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del known


def load_tokenizer(path: str) -> Any:
    """Load the tokenizer of a model folder; nothing is fetched from a network.

    Raises:
        UsageError: there is no such folder, no tokenizer in it, or none that knows where a text ends.
    """
    from transformers import AutoTokenizer

    _require_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("tokenizer", path, error) from None
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no end-of-text token", where=path, remedy="use a model that has one"
        )
    return tokenizer


def load_model(path: str, *, dtype: str, attention: str | None) -> nn.Module:
    """Load a causal language model from safetensors, with every weight frozen.

    Raises:
        UsageError: there is no such folder, or no causal language model in it.
    """
    from transformers import AutoModelForCausalLM

    options = {} if attention is None else {"attn_implementation": attention}
    _require_folder(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, dtype=DTYPES[dtype], use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("language model", path, error) from None
    frozen: nn.Module = model.requires_grad_(False)
    return frozen


def _require_folder(path: str) -> None:
    if not path or not (Path(path) / "config.json").is_file():
        raise UsageError(
            "there is no language model" if path else "no language model is given",
            where=f"language_model.path = {path!r}",
            remedy="give the folder of a causal language model, weights and tokenizer in it",
        )


def _cannot_load(what: str, path: str, error: Exception) -> UsageError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UsageError(
        f"the {what} cannot be loaded: {first_line}", where=path, remedy="check the folder's files"
    )


def with_lora(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Put trainable adapters into a frozen model.

    Raises:
        UsageError: no layer is called as ``config.targets`` says.
    """
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    try:
        adapted = get_peft_model(
            model,
            PeftLora(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=list(config.targets),
            ),
        )
    except ValueError as error:
        raise UsageError(
            f"no adapter fits: {str(error).splitlines()[0]}",
            where="language_model.lora.targets",
            remedy="name linear layers",
        ) from None
    return adapted


def recompute_activations(model: nn.Module) -> None:
    """Switch recomputation on; it works in training mode alone, so dropout is taken out."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if hasattr(model.config, "attention_dropout"):
        model.config.attention_dropout = 0.0
