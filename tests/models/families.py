"""Tiny random language models of many families, saved with a tokenizer as ``transformers`` saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "Translate translate this sign language into to English German : sun rain in the north user model".split()
)
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>"]
CODES = {
    "mbart50": ["de_DE", "en_XX"],
    "mbart": ["de_DE", "en_XX"],
    "m2m100": ["__de__", "__en__", "__zh__", "__ast__"],
    "nllb": ["deu_Latn", "eng_Latn", "zho_Hans", "zho_Hant", "kin_Latn", "ace_Arab"],
}
"""Languages for which the families have codes."""
CHAT = (
    "{% for m in messages %}<s>user {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}model{% endif %}"
)

SIZE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough that what goes in matters to what comes out
}
GROUPED = SIZE | {"num_key_value_heads": 1}
T5_SIZE = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 3,
    "initializer_factor": 5.0,
}
BART_SIZE = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "init_std": 0.3,
}
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED | {"sliding_window": None}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "gemma": ("Gemma", GROUPED | {"head_dim": 8}),
    "gemma3": ("Gemma3Text", GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi": ("Phi", SIZE | {"partial_rotary_factor": 0.5}),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}),
    "opt": ("OPT", {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            | {"max_position_embeddings": 64, "word_embed_proj_dim": 16, "init_std": 0.3}),
}  # fmt: skip
ENCODER_DECODER: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", T5_SIZE),
    "flan-t5": ("T5", T5_SIZE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5", T5_SIZE | {"tie_word_embeddings": False}),
    "mbart50": ("MBart", BART_SIZE | {"decoder_start_token_id": 1, "scale_embedding": True}),
    "mbart": ("MBart", BART_SIZE | {"decoder_start_token_id": None}),
}

BY_CODES: dict[str, tuple[str, dict[str, Any]]] = {
    "m2m100": ("M2M100", BART_SIZE | {"decoder_start_token_id": 1, "scale_embedding": True}),
    "nllb": ("M2M100", BART_SIZE | {"decoder_start_token_id": 1, "scale_embedding": True}),
}
"""Encoder-decoders with language codes, such as mBART."""


def save_family(folder: Path, name: str, *, chat: bool = False) -> Path:
    """Write a random model of a family and its tokenizer of whole words; ``chat``: with a chat template."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    kind, settings = (CAUSAL | ENCODER_DECODER | BY_CODES)[name]
    codes = CODES.get(name, [])
    special = [*SPECIAL, *codes]
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        **({"bos_token": "<s>"} if name in CAUSAL else {}),
        **({"additional_special_tokens": codes} if codes else {}),
    )
    if chat:
        saved.chat_template = CHAT
    saved.save_pretrained(folder)
    torch.manual_seed(0)
    tokens = {
        "vocab_size": len(special) + len(WORDS),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 3,
    }
    config = getattr(transformers, f"{kind}Config")(**(tokens | settings))
    head = "ForCausalLM" if name in CAUSAL else "ForConditionalGeneration"
    head = "LMHeadModel" if name == "gpt2" else head
    getattr(transformers, f"{kind.removesuffix('Text')}{head}")(config).save_pretrained(folder)
    return folder


def save_chat_model(folder: Path, template: Any, special: Sequence[str] = (), *, end: str = "</s>") -> Path:
    """Write a random LLaMA whose tokenizer reads bytes, with special tokens and a chat template of its own.

    ``template`` may be several by name; None: no template. ``end``: the tokenizer's end token.
    """
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    added = list(dict.fromkeys(["<s>", end, *special]))
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({token: place for place, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteDecoder()
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=end, additional_special_tokens=added[2:]
    )
    saved.chat_template = template
    saved.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = GROUPED | {"max_position_embeddings": 512, "vocab_size": len(saved)}
    ids = {"bos_token_id": saved.bos_token_id, "eos_token_id": saved.eos_token_id}
    config = transformers.LlamaConfig(**(sizes | ids))
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_experts(folder: Path) -> Path:
    """Write a random Mixtral, whose file has a tensor per expert and whose model has one for all experts."""
    import transformers

    torch.manual_seed(0)
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 8}
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**(GROUPED | sizes))).save_pretrained(folder)
    return folder
