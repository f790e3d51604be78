"""What may learn in a frozen language model, through ``peft``: LoRA, or a prompt of learnt vectors.

Neither is in the paper; off unless given, one at a time, saved in ``peft``'s own format. LoRA puts low-rank
updates into linear layers (arXiv 2106.09685). Prompt tuning (arXiv 2104.08691) puts vectors before all else
that the model reads, in an encoder-decoder before what its encoder reads. We place them ourselves, as rows of
the prompt like the sign words, so that masks, lengths and generation are those of any prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from signllm.errors import UsageError
from signllm.models.collectives import gathered_parameters

LORA_TARGETS = ("q_proj", "v_proj")
IN_MODEL = "language_model.model."
"""Begins the names of LoRA's tensors in a SignLLM; ``peft`` writes what follows, without ``.default``."""
VIRTUAL = "language_model.virtual_tokens.embedding.weight"
PEFT_VIRTUAL = "prompt_embeddings"
"""The learnt vectors in a SignLLM, and in a file of ``peft``."""
BASE_CLASS = "base_model_class"
"""Where ``peft`` records, in ``auto_mapping``, the class of the model that adapters were trained in."""


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
                f"lora.rank is {self.rank}, targets {self.targets}",
                where="language_model.lora",
                remedy="give a rank and target layers",
            )


@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig:
    """Learnt vectors before the prompt, through ``peft``; not in the paper, off unless given.

    Attributes:
        tokens: how many; each takes a place of those that the model has.
        init: what they begin as: ``vocabulary``, the embeddings of random tokens; ``text``, those of
            ``text``, cut or repeated; ``random``, normal numbers.
        text: for ``init`` text.
    """

    tokens: int = 20
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    text: str | None = None

    def __post_init__(self) -> None:
        where = "language_model.prompt_tuning"
        if self.tokens < 1:
            raise UsageError(f"prompt_tuning.tokens is {self.tokens}", where=where, remedy="give 1 or more")
        if (self.init == "text") != bool(self.text):
            raise UsageError(
                f"prompt_tuning.init is {self.init}, text {self.text!r}",
                where=where,
                remedy="give a text and init text, or neither",
            )


def build_peft_config(config: LoraConfig | PromptTuningConfig, model: Any, *, tokenizer: str = "") -> Any:
    """Return adapters as ``peft`` configures them.

    Args:
        config: which.
        model: the ``transformers`` configuration of the language model.
        tokenizer: folder of it; only ``init`` text reads it, when the vectors are made.
    """
    task = "SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM"
    if isinstance(config, LoraConfig):
        from peft import LoraConfig as PeftLora
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        return PeftLora(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets or KNOWN.get(model.model_type, LORA_TARGETS)),
        )
    from peft import PromptTuningConfig as PeftPrompt

    kinds = {"vocabulary": "SAMPLE_VOCAB", "text": "TEXT", "random": "RANDOM"}
    return PeftPrompt(
        task_type=task,
        num_virtual_tokens=config.tokens,
        num_transformer_submodules=1,  # peft would give a decoder's side of an encoder-decoder a prompt too
        prompt_tuning_init=kinds[config.init],
        prompt_tuning_init_text=config.text,
        tokenizer_name_or_path=tokenizer if config.init == "text" else None,
    )


def add_lora(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Put trainable adapters into a frozen model.

    Raises:
        UsageError: no layer is called as ``config.targets`` says.
    """
    from peft import get_peft_model

    try:
        adapted = get_peft_model(model, build_peft_config(config, model.config))
    except ValueError as error:
        raise UsageError(
            f"no adapter fits: {str(error).splitlines()[0]}",
            where="language_model.lora.targets",
            remedy="name linear layers",
        ) from None
    return adapted


def build_virtual_tokens(model: Any, config: PromptTuningConfig, *, tokenizer: str) -> nn.Module:
    """Return ``peft``'s table of learnt vectors for a model, partitioned or not (all ranks).

    ``init`` vocabulary and random draw from torch's generator: ranks that are seeded alike draw alike.
    """
    from peft import PromptEmbedding

    table = model.get_input_embeddings()
    settings = build_peft_config(config, model.config, tokenizer=tokenizer)
    settings.token_dim = int(table.embedding_dim)
    with gathered_parameters([table.weight]):
        return PromptEmbedding(settings, table)


def is_adapter(name: str) -> bool:
    """Say whether a tensor of SignLLM belongs to an adapter, LoRA's or the learnt vectors."""
    return name == VIRTUAL or name.startswith(IN_MODEL)


def to_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return adapters by the names that ``peft`` gives them in a file."""
    return {
        PEFT_VIRTUAL if name == VIRTUAL else name.removeprefix(IN_MODEL).replace(".default.", "."): tensor
        for name, tensor in tensors.items()
    }


def from_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapters of a file of ``peft`` by the names that they have in a SignLLM."""
    found = {}
    for name, tensor in tensors.items():
        part, _, kind = name.rpartition(".")
        found[VIRTUAL if name == PEFT_VIRTUAL else f"{IN_MODEL}{part}.default.{kind}"] = tensor
    return found
