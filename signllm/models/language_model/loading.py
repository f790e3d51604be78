"""Loading a frozen language model and its tokenizer from a folder, partitioned over the ranks under ZeRO-3.

Only local files and only safetensors are read: nothing is downloaded, and no pickle is opened.
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
from signllm.models.language_model.model_files import (
    FETCH_AGAIN,
    TOKENIZERS,
    model_folder,
    require_files,
    require_safetensors,
    require_tokenizer_files,
)
from signllm.models.language_model.partitioned_loading import load_partitioned
from signllm.models.language_model.weight_quantization import (
    Quantize,
    prequantized_loading_options,
    quantized_loading_options,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@contextmanager
def zero3_loading(deepspeed: Mapping[str, Any] | None, *, dtype: str) -> Iterator[None]:
    """Under ZeRO-3, let ``transformers`` partition the models that it loads inside the block.

    Models that are built after the block are not partitioned.

    Args:
        deepspeed: settings of the DeepSpeed engine, or None.
        dtype: precision of the weights; without it DeepSpeed would use the precision of the training.
    """
    if deepspeed is None or deepspeed["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    loaded_as = {**deepspeed, "bf16": {"enabled": dtype == "bf16"}}
    config = HfDeepSpeedConfig(loaded_as)  # transformers keeps only a weak reference to it
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del config


def load_tokenizer(path: str) -> Any:
    """Load the tokenizer of a language model.

    Raises:
        UsageError: there is no such folder, it has no tokenizer that can be loaded, or the tokenizer has no
            end-of-text token.
    """
    from transformers import AutoTokenizer

    folder = model_folder(path)
    require_tokenizer_files(folder, path)
    _require_sentencepiece(folder, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exceptions if it cannot read a file
        raise _unreadable_tokenizer(folder, path, error) from None
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no end-of-text token", where=path, remedy="use a model that has one"
        )
    return tokenizer


def _require_sentencepiece(folder: Path, path: str) -> None:
    """Check that a tokenizer which is only available in the format of sentencepiece can be loaded.

    Without that package, ``transformers`` names another package or builds a tokenizer with an empty
    vocabulary.
    """
    models = sorted(folder.glob("*.model"))
    has_others = any(any(folder.glob(kind)) for kind in TOKENIZERS if kind not in ("*.model", "vocab.*"))
    packages = [importlib.util.find_spec(name) for name in ("sentencepiece", "tiktoken")]
    if models and not has_others and packages == [None, None]:
        raise UsageError(
            f"{models[0].name} needs the package sentencepiece, and there is no tokenizer.json",
            where=path,
            remedy="install it: pip install sentencepiece; or save the tokenizer on a machine that has it: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )


def _unreadable_tokenizer(folder: Path, path: str, error: Exception) -> UsageError:
    """Return an error with the reason why a tokenizer cannot be loaded, such as a damaged file."""
    import tokenizers
    import transformers

    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            tokenizers.Tokenizer.from_file(str(file))
        except Exception as reason:  # plain Exceptions, as in load_tokenizer
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                return UsageError(
                    f"tokenizer.json is truncated or damaged: {reason}", where=file, remedy=FETCH_AGAIN
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
        UsageError: there is no such folder, or ``transformers`` does not know the model in it.
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
            "pip install -U transformers; custom code in a model's folder is never run",
        ) from None


def model_type(model: Any) -> str:
    """Return the ``transformers`` model type of a model, for example ``llama``."""
    return str(model.config.model_type)


def disable_dropout(settings: Any) -> Any:
    """Set every dropout of a ``transformers`` configuration to 0 and all optional outputs to off; return it.

    Optional outputs such as ``output_attentions`` cost memory and rule out the fast implementations of
    attention.
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
    """Return the largest number of positions of a model; None if it has relative positions (T5)."""
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
    """Load a language model from safetensors, with all weights frozen and without dropout.

    With ZeRO-3 every rank must call this; each loads its share of the weights.

    Args:
        path: folder of the model, or its name in the cache of the hub.
        kind: class of the model.
        dtype: precision of the weights, a key of ``DTYPES``.
        attention: implementation of attention; None means torch's SDPA if the family has it.
        quantize: precision to which the weights are quantized.
        deepspeed: settings of the DeepSpeed engine, or None.

    Raises:
        UsageError: there is no such folder, it has no language model of that kind, weights are missing or not
            safetensors, or this machine lacks what ``attention`` or ``quantize`` needs.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    is_partitioned = deepspeed is not None and deepspeed["zero_optimization"]["stage"] == 3
    check_attention(attention, dtype=dtype)
    options = quantized_loading_options(quantize, dtype=DTYPES[dtype], is_partitioned=is_partitioned)
    options |= {} if attention is None else {"attn_implementation": attention}
    folder, settings = model_folder(path), read_configuration(path)
    options |= prequantized_loading_options(settings, path, quantize=quantize, is_partitioned=is_partitioned)
    require_safetensors(folder, path)
    try:
        disable_dropout(settings)
        options |= {"dtype": DTYPES[dtype]}
        if is_partitioned:
            loaded_as = {**(deepspeed or {}), "bf16": {"enabled": dtype == "bf16"}}
            model = load_partitioned(auto, folder, settings, loaded_as, **options)
            if model is not None:
                return _freeze(model)
        with zero3_loading(deepspeed, dtype=dtype):
            loaded: Any = auto.from_pretrained(
                folder,
                config=settings,
                generation_config=GenerationConfig(),  # so that the file in the folder is not read
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
        what = ValueError("the shapes of the weights do not match config.json")
        raise _cannot_load("language model", path, what) from None
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UsageError(
            f"{len(missing)} weights of the language model are missing in its files, first {missing[0]}",
            where=path,
            remedy=FETCH_AGAIN,
        )
    return _freeze(model)


def _freeze(model: Any) -> nn.Module:
    """Freeze a model, clear its own generation settings, and exclude its buffers from checkpoints.

    The buffers are in the files of the model. Generation uses only the options of this project.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    for part in model.modules():
        part._non_persistent_buffers_set.update(part._buffers)
    frozen: nn.Module = model.requires_grad_(False)
    return frozen


def check_attention(attention: str | None, *, dtype: str) -> None:
    """Check that this machine supports an implementation of attention.

    Raises:
        UsageError: flash attention is requested without its package, without a GPU, or in 32 bits.
    """
    if attention != "flash_attention_2":
        return
    problem = None
    if importlib.util.find_spec("flash_attn") is None:
        problem = "flash attention is not installed here", "pip install flash-attn, or "
    elif not torch.cuda.is_available():
        problem = "flash attention needs a GPU, but this machine has none", ""
    elif dtype == "fp32":
        problem = "flash attention needs 16 bits, but language_model.dtype is fp32", "give bf16, or "
    if problem is not None:
        raise UsageError(
            problem[0],
            where="--sign-llm.language-model.attention",
            remedy=f"{problem[1]}leave the option out: torch's SDPA is the default",
        )


def _cannot_load(what: str, path: str, error: Exception) -> UsageError:
    """Return an error for the user with the first line of an exception of ``transformers``."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UsageError(
        f"the {what} cannot be loaded: {first_line}", where=path, remedy="check the folder's files"
    )


def recompute_activations(model: nn.Module) -> None:
    """Enable gradient checkpointing, which recomputes activations; it has an effect only in training mode."""
    enable: Any = (
        getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})  # transformers 5.0 has the second name, 6 will have the first alone
