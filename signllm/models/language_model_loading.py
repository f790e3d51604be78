"""Load a language model so that it stays as it is: frozen, partitioned under ZeRO-3, adapters apart.

Only what lies on this machine and only safetensors are read: nothing is fetched, no pickle is opened.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from signllm.errors import UsageError
from signllm.models.language_model_quantization import (
    Quantize,
    prequantized_loading_options,
    quantized_loading_options,
)
from signllm.models.model_files import (
    FETCH_AGAIN,
    TOKENIZERS,
    model_folder,
    require_files,
    require_safetensors,
    require_tokenizer_files,
)
from signllm.models.partitioned_loading import load_partitioned

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
        UsageError: there is no such folder, no tokenizer in it that can be read here, or none that knows
            where a text ends.
    """
    from transformers import AutoTokenizer

    folder = model_folder(path)
    require_tokenizer_files(folder, path)
    _require_sentencepiece(folder, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain exceptions where it cannot read a file
        raise _unreadable_tokenizer(folder, path, error) from None
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no end-of-text token", where=path, remedy="use a model that has one"
        )
    return tokenizer


def _require_sentencepiece(folder: Path, path: str) -> None:
    """Check that a tokenizer in the format of sentencepiece alone can be read.

    Without the package, ``transformers`` asks for another one or builds a tokenizer without words.
    """
    models = sorted(folder.glob("*.model"))
    has_others = any(any(folder.glob(kind)) for kind in TOKENIZERS if kind not in ("*.model", "vocab.*"))
    packages = [importlib.util.find_spec(name) for name in ("sentencepiece", "tiktoken")]
    if models and not has_others and packages == [None, None]:
        raise UsageError(
            f"reading {models[0].name} needs the package sentencepiece, and there is no tokenizer.json",
            where=path,
            remedy="install sentencepiece: pip install sentencepiece; or save the tokenizer once where it is "
            "installed: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )


def _unreadable_tokenizer(folder: Path, path: str, error: Exception) -> UsageError:
    """Return why a tokenizer cannot be read: a damaged or newer file, or a package that is missing."""
    import tokenizers
    import transformers

    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            tokenizers.Tokenizer.from_file(str(file))
        except Exception as reason:  # as above
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                return UsageError(
                    f"tokenizer.json is cut off or damaged: {reason}", where=file, remedy=FETCH_AGAIN
                )
            return UsageError(
                f"tokenizer.json cannot be read by tokenizers {tokenizers.__version__}: {reason}",
                where=file,
                remedy="a newer version probably wrote it: pip install -U tokenizers transformers",
            )
    cannot = _cannot_load("tokenizer", path, error)
    newer = (
        f"transformers {transformers.__version__} may be older than the model: pip install -U transformers"
    )
    return UsageError(cannot.what, where=path, remedy=f"{cannot.remedy}; {newer}")


def read_configuration(path: str) -> Any:
    """Return the ``transformers`` configuration of a language model.

    Raises:
        UsageError: there is no such folder, or nothing that ``transformers`` knows in it.
    """
    import transformers
    from transformers import AutoConfig

    folder = model_folder(path)
    require_files(folder, ["config.json"])
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        cannot = _cannot_load("configuration", path, error)
        if "model type" not in str(error):
            raise cannot from None
        raise UsageError(
            cannot.what,
            where=path,
            remedy=f"a newer version than transformers {transformers.__version__} may know it: "
            "pip install -U transformers; code that a model brings along is never run",
        ) from None


def model_type(model: Any) -> str:
    """Return what ``transformers`` calls the family of a model, e.g. ``llama``."""
    return str(model.config.model_type)


def disable_dropout(settings: Any) -> Any:
    """Return a configuration, itself, with every dropout of its own at 0, and with logits as its only output.

    ``output_attentions`` and its like would cost memory, and an attention that computes them.
    """
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(settings, name, False):
            setattr(settings, name, False)
    settings.return_dict = True
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
    path: str,
    kind: Literal["causal", "encoder-decoder"],
    *,
    dtype: str,
    attention: str | None = None,
    quantize: Quantize = "none",
    deepspeed: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a language model from safetensors, with every weight frozen and no dropout of its own.

    ``deepspeed``: the engine's settings; under ZeRO-3 each rank loads its share (all ranks).

    Raises:
        UsageError: there is no such folder, no language model of that kind in it, weights of it are missing
            or no safetensors, or this machine lacks what ``attention`` or ``quantize`` need.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    is_cut = deepspeed is not None and deepspeed["zero_optimization"]["stage"] == 3
    check_attention(attention, dtype=dtype)
    options = quantized_loading_options(quantize, dtype=DTYPES[dtype], is_cut=is_cut)
    options |= {} if attention is None else {"attn_implementation": attention}
    folder, settings = model_folder(path), read_configuration(path)
    options |= prequantized_loading_options(settings, path, quantize=quantize, is_cut=is_cut)
    require_safetensors(folder, path)
    try:
        disable_dropout(settings)
        options |= {"dtype": DTYPES[dtype]}
        if is_cut:
            loaded_as = {**(deepspeed or {}), "bf16": {"enabled": dtype == "bf16"}}
            model = load_partitioned(auto, folder, settings, loaded_as, **options)
            if model is not None:
                return _frozen(model)
        with zero3_loading(deepspeed, dtype=dtype):
            loaded: Any = auto.from_pretrained(
                folder,
                config=settings,
                generation_config=GenerationConfig(),  # given one, the folder's file is not read
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise _cannot_load("language model", path, error) from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        what = ValueError("weights have other shapes than config.json says")
        raise _cannot_load("language model", path, what) from None
    model, found = loaded
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise UsageError(
            f"{len(missing)} weights of the language model are missing in its files, first {missing[0]}",
            where=path,
            remedy="fetch or save the model again, whole",
        )
    return _frozen(model)


def _frozen(model: Any) -> nn.Module:
    """Freeze a model and empty its own settings of decoding, those of ``config.json`` included.

    No checkpoint holds its buffers: they are in its own files.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    for part in model.modules():
        part._non_persistent_buffers_set.update(part._buffers)
    frozen: nn.Module = model.requires_grad_(False)
    return frozen


def check_attention(attention: str | None, *, dtype: str) -> None:
    """Check that an implementation of attention can be had here; None, which is SDPA where there is one, can.

    Raises:
        UsageError: flash attention without its package, without a GPU, or in 32 bits.
    """
    if attention != "flash_attention_2":
        return
    problem = None
    if importlib.util.find_spec("flash_attn") is None:
        problem = "flash attention is not installed here", "pip install flash-attn, or "
    elif not torch.cuda.is_available():
        problem = "flash attention needs a GPU, and there is none here", ""
    elif dtype == "fp32":
        problem = "flash attention computes in 16 bits, and language_model.dtype is fp32", "give bf16, or "
    if problem is not None:
        raise UsageError(
            problem[0],
            where="--sign-llm.language-model.attention",
            remedy=f"{problem[1]}leave the option out: torch's SDPA is the default",
        )


def _cannot_load(what: str, path: str, error: Exception) -> UsageError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UsageError(
        f"the {what} cannot be loaded: {first_line}", where=path, remedy="check the folder's files"
    )


def recompute_activations(model: nn.Module) -> None:
    """Switch recomputation on; it works in training mode alone."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # transformers 5.0 has the second name, 6 will have the first alone
