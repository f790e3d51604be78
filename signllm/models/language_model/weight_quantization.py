"""Quantization of the frozen language model to 4 or 8 bits, through ``bitsandbytes``.

7 billion weights take about 4 or 7 GB. 4 bits means NF4 with quantized scales, which computes in the model's
dtype (QLoRA, arXiv 2305.14314); 8 bits means LLM.int8 (arXiv 2208.07339). Embeddings and the output layer are
not quantized. Gradients pass through quantized layers, so the parts before the language model, LoRA and
prompt tuning can be trained as usual.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch

from signllm.errors import UsageError

Quantize = Literal["none", "4bit", "8bit"]
OPTION = "--sign-llm.language-model.quantize"


def quantized_loading_options(
    quantize: Quantize, *, dtype: torch.dtype, is_partitioned: bool
) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that quantize a model; none if ``quantize`` is "none".

    Args:
        quantize: option of the user.
        dtype: dtype in which quantized layers compute.
        is_partitioned: whether ZeRO-3 partitions the model. That excludes quantization, because DeepSpeed
            gathers plain tensors, while a quantized weight consists of bytes and separate scales.

    Raises:
        UsageError: quantization is requested under ZeRO-3, without its package, or without a GPU.
    """
    if quantize == "none":
        return {}
    problem = None
    if is_partitioned:
        problem = (
            "ZeRO-3 cannot partition a quantized language model",
            "give --training.deepspeed zero2, or set this option to none",
        )
    elif importlib.util.find_spec("bitsandbytes") is None:
        problem = (
            "bitsandbytes is not installed here",
            "pip install 'signllm[quantized]', or set this option to none",
        )
    elif device() is None:
        problem = (
            "quantization needs a CUDA device, but this machine has none",
            "set this option to none (for a finished run: in its config.json)",
        )
    if problem is not None:
        raise UsageError(f"quantize is {quantize}: {problem[0]}", where=OPTION, remedy=problem[1])
    from transformers import BitsAndBytesConfig

    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantize == "8bit"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    )
    return {"quantization_config": settings, "device_map": {"": device()}}


def prequantized_loading_options(
    settings: Any, path: str, *, quantize: Quantize, is_partitioned: bool
) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for a checkpoint that may already be quantized.

    Args:
        settings: ``transformers`` configuration of the model.
        path: folder of the model, for messages.
        quantize: option of the user.
        is_partitioned: whether ZeRO-3 partitions the model.

    Raises:
        UsageError: a quantized checkpoint would be partitioned, quantized again, or cannot be loaded here.
    """
    recorded = getattr(settings, "quantization_config", None)
    if recorded is None:
        return {}
    from transformers.quantizers import AutoHfQuantizer

    method = recorded.get("quant_method") if isinstance(recorded, dict) else recorded.quant_method
    what = f"the language model is already quantized ({getattr(method, 'value', method)})"
    original = "give the original model with 16 bits"
    if is_partitioned:
        raise UsageError(
            f"{what}, and ZeRO-3 cannot partition a quantized model",
            where=path,
            remedy=f"use zero2: --training.deepspeed zero2; or {original}",
        )
    if quantize != "none":
        raise UsageError(
            f"{what}, but quantize is {quantize}",
            where=OPTION,
            remedy=f"set this option to none, or {original}",
        )
    options = {} if device() is None else {"device_map": {"": device()}}
    try:
        AutoHfQuantizer.from_config(recorded, pre_quantized=True).validate_environment(
            **({"device_map": None} | options)
        )
    except Exception as error:  # each method has its own packages and its own exceptions for them
        first_line = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{what} and cannot be loaded here: {first_line}",
            where=path,
            remedy=f"install the packages that it needs, or {original}",
        ) from None
    return options


def device() -> torch.device | None:
    """Return the GPU of this rank, on which weights are quantized; None without one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
