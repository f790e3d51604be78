"""A frozen language model in 4 or 8 bits, through ``bitsandbytes``: 7 billion weights in about 4 or 7 GB.

4 bits: NF4 with its scales quantised again, computing in the model's dtype (QLoRA, arXiv 2305.14314); 8 bits:
LLM.int8 (arXiv 2208.07339). Embeddings and the output layer stay as they are. The gradient passes through, so
what precedes the model, LoRA and a learnt prompt train as ever.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch

from signllm.errors import UsageError

Quantize = Literal["none", "4bit", "8bit"]
OPTION = "--sign-llm.language-model.quantize"


def quantized_loading_options(quantize: Quantize, *, dtype: torch.dtype, is_cut: bool) -> dict[str, Any]:
    """Return what ``from_pretrained`` has to be given; nothing for ``none``.

    Args:
        quantize: the option.
        dtype: in which quantised maps compute.
        is_cut: by ZeRO-3 over the ranks, which cannot be: DeepSpeed gathers plain tensors, and a quantised
            weight is bytes and scales that belong to them.

    Raises:
        UsageError: under ZeRO-3, without the package, or without a GPU.
    """
    if quantize == "none":
        return {}
    problem = None
    if is_cut:
        problem = (
            "ZeRO-3 cannot cut a quantised language model",
            "give --training.deepspeed zero2, or none here",
        )
    elif importlib.util.find_spec("bitsandbytes") is None:
        problem = "bitsandbytes is not installed here", "pip install 'signllm[quantized]', or give none"
    elif device() is None:
        problem = (
            "4 and 8 bits need a CUDA device, and there is none here",
            "give none (of a finished run: in its config.json)",
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
    settings: Any, path: str, *, quantize: Quantize, is_cut: bool
) -> dict[str, Any]:
    """Check a checkpoint that may be quantised already; return what ``from_pretrained`` is given for it.

    Args:
        settings: configuration of the model, as ``transformers`` reads it.
        path: the model's folder, for messages.
        quantize: our option.
        is_cut: by ZeRO-3 over the ranks.

    Raises:
        UsageError: it would be cut, or quantised a second time, or cannot be read here.
    """
    recorded = getattr(settings, "quantization_config", None)
    if recorded is None:
        return {}
    from transformers.quantizers import AutoHfQuantizer

    method = recorded.get("quant_method") if isinstance(recorded, dict) else recorded.quant_method
    what = f"the language model is quantised already ({getattr(method, 'value', method)})"
    original = "give the original model, in 16 bits"
    if is_cut:
        raise UsageError(
            f"{what}, and ZeRO-3 cannot cut a quantised model",
            where=path,
            remedy=f"use zero2: --training.deepspeed zero2; or {original}",
        )
    if quantize != "none":
        raise UsageError(
            f"{what}, and quantize is {quantize}", where=OPTION, remedy=f"give none here, or {original}"
        )
    options = {} if device() is None else {"device_map": {"": device()}}
    try:
        AutoHfQuantizer.from_config(recorded, pre_quantized=True).validate_environment(
            **({"device_map": None} | options)
        )
    except Exception as error:  # each method has its own packages, and errors for them
        first_line = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{what}, and it cannot be read here: {first_line}",
            where=path,
            remedy=f"install what it needs, or {original}",
        ) from None
    return options


def device() -> torch.device | None:
    """Return the GPU of this rank, on which weights are quantised; None without one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
