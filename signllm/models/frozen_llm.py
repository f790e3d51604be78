"""Load a language model so that it stays as it is: frozen, partitioned under ZeRO-3, adapters apart.

Only what lies on this machine and only safetensors are read: nothing is fetched, no pickle is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from signllm.errors import UsageError

LORA_TARGETS = ("q_proj", "v_proj")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in the language model, through ``peft``; not in the paper, off unless given.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapters' input.
        targets: names of the linear layers that get one; None: those that ``peft`` names for the family,
            for an unknown one the attention's queries and values.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.targets == ():
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

    folder = model_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("tokenizer", path, error) from None
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no end-of-text token", where=path, remedy="use a model that has one"
        )
    return tokenizer


def read_configuration(path: str) -> Any:
    """Return the ``transformers`` configuration of a language model.

    Raises:
        UsageError: there is no such folder, or nothing that ``transformers`` knows in it.
    """
    from transformers import AutoConfig

    folder = model_folder(path)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("configuration", path, error) from None


ADAPTER = "language_model.model."
"""What the names of adapters in a SignLLM begin with; ``peft`` writes what follows, without its own name."""


def peft_name(name: str) -> str:
    """Return how ``peft`` names an adapter's tensor in a file."""
    return name.removeprefix(ADAPTER).replace(".default.", ".")


def model_type(model: Any) -> str:
    """Return what ``transformers`` calls the family of a model, e.g. ``llama``."""
    return str(model.config.model_type)


def family_name(path: str) -> str:
    """Return the ``transformers`` type of the language model of a folder, without loading it."""
    return str(read_configuration(path).model_type)


def without_dropout(settings: Any) -> Any:
    """Return a configuration, itself, with every dropout of its own at 0."""
    for name, value in settings.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(settings, name, 0.0)
    return settings


def position_limit(config: Any) -> int | None:
    """Return how many places a model reads at most; None where positions are relative, without end (T5)."""
    if hasattr(config, "relative_attention_num_buckets"):
        return None
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def load_model(
    path: str, kind: Literal["causal", "encoder-decoder"], *, dtype: str, attention: str | None
) -> nn.Module:
    """Load a language model from safetensors, with every weight frozen and no dropout of its own.

    Raises:
        UsageError: there is no such folder, or no language model of that kind in it.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    options = {} if attention is None else {"attn_implementation": attention}
    folder, settings = model_folder(path), read_configuration(path)
    try:
        without_dropout(settings)
        model = auto.from_pretrained(
            folder,
            config=settings,
            local_files_only=True,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("language model", path, error) from None
    frozen: nn.Module = model.requires_grad_(False)
    return frozen


def model_folder(name: str) -> Path:
    """Return the folder of a language model: ``name`` itself, or the copy that the hub's cache holds of it.

    Nothing is fetched: nodes of a cluster often cannot, and a thousand ranks should not.

    Raises:
        UsageError: it is neither a folder of a model nor in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if (Path(name) / "config.json").is_file():
        return Path(name)
    remedy = "give the folder of a language model, weights and tokenizer in it"
    if name and not Path(name).exists() and name.count("/") <= 1:
        remedy += f", or fetch it from the hub first: hf download {name}"
        with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
            found = Path(snapshot_download(name, local_files_only=True))
            if (found / "config.json").is_file():
                return found
    raise UsageError(
        "there is no language model" if name else "no language model is given",
        where=f"language_model.path = {name!r}",
        remedy=remedy,
    )


def _cannot_load(what: str, path: str, error: Exception) -> UsageError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UsageError(
        f"the {what} cannot be loaded: {first_line}", where=path, remedy="check the folder's files"
    )


def peft_settings(config: LoraConfig, family: str) -> Any:
    """Return adapters as ``peft`` configures them, for a model of a ``transformers`` type."""
    from peft import LoraConfig as PeftLora
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    return PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets or KNOWN.get(family, LORA_TARGETS)),
    )


def with_lora(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Put trainable adapters into a frozen model.

    Raises:
        UsageError: no layer is called as ``config.targets`` says.
    """
    from peft import get_peft_model

    try:
        adapted = get_peft_model(model, peft_settings(config, model_type(model)))
    except ValueError as error:
        raise UsageError(
            f"no adapter fits: {str(error).splitlines()[0]}",
            where="language_model.lora.targets",
            remedy="name linear layers",
        ) from None
    return adapted


def recompute_activations(model: nn.Module) -> None:
    """Switch recomputation on; it works in training mode alone."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
