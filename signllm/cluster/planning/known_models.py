"""Well-known language models by name, as plain numbers: a plan needs a model's shape, not its weights.

Sources: LLaMA, arXiv 2302.13971, table 2, with the inner widths from the released ``params.json``; Llama 2,
arXiv 2307.09288, section 2.2; Llama 3, arXiv 2407.21783, table 3; T5 and Flan-T5, arXiv 1910.10683 and the
checkpoints' ``config.json``. ``finetune`` cannot start from such a name alone, because it needs the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from signllm.errors import UsageError
from signllm.models.language_model.model_files import model_folder


def _llama(
    *, width: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, places: int
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "max_position_embeddings": places,
        "tie_word_embeddings": False,
    }


def _flan_t5(*, width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "d_model": width,
        "d_ff": inner,
        "d_kv": 64,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "is_encoder_decoder": True,
    }


KNOWN: dict[str, dict[str, Any]] = {
    "llama-7b": _llama(
        width=4096, inner=11008, layers=32, heads=32, groups=32, vocabulary=32000, places=2048
    ),
    "llama-13b": _llama(
        width=5120, inner=13824, layers=40, heads=40, groups=40, vocabulary=32000, places=2048
    ),
    "llama-33b": _llama(
        width=6656, inner=17920, layers=60, heads=52, groups=52, vocabulary=32000, places=2048
    ),
    "llama-65b": _llama(
        width=8192, inner=22016, layers=80, heads=64, groups=64, vocabulary=32000, places=2048
    ),
    "llama-2-7b": _llama(
        width=4096, inner=11008, layers=32, heads=32, groups=32, vocabulary=32000, places=4096
    ),
    "llama-2-13b": _llama(
        width=5120, inner=13824, layers=40, heads=40, groups=40, vocabulary=32000, places=4096
    ),
    "llama-2-70b": _llama(
        width=8192, inner=28672, layers=80, heads=64, groups=8, vocabulary=32000, places=4096
    ),
    "llama-3-8b": _llama(
        width=4096, inner=14336, layers=32, heads=32, groups=8, vocabulary=128256, places=8192
    ),
    "llama-3-70b": _llama(
        width=8192, inner=28672, layers=80, heads=64, groups=8, vocabulary=128256, places=8192
    ),
    "flan-t5-xl": _flan_t5(width=2048, inner=5120, layers=24, heads=32),
    "flan-t5-xxl": _flan_t5(width=4096, inner=10240, layers=24, heads=64),
}


@contextmanager
def configuration_folder(name: str) -> Iterator[str]:
    """Yield a folder with the configuration of a language model: a real one, or one made for a known name.

    Raises:
        UsageError: there is no such model; the message lists the known names.
    """
    folder = _folder(name)
    if folder is not None:
        yield str(folder)
        return
    with TemporaryDirectory() as temporary:
        (Path(temporary) / "config.json").write_text(json.dumps(KNOWN[name]))
        yield temporary


def _folder(name: str) -> Path | None:
    """Return the folder that ``finetune`` would read; None if only the name is known."""
    try:
        return model_folder(name)
    except UsageError as error:
        if name in KNOWN:
            return None
        raise UsageError(
            error.what,
            where=f"--llm {name}",
            remedy="give a folder with a config.json (weights are not needed here), or one of "
            + ", ".join(KNOWN),
        ) from None
