"""Adapters of the frozen language model, through ``peft``: LoRA, or prompt tuning.

Neither is in the paper. They are off by default, exclude each other, and are saved in the format of ``peft``.
LoRA adds low-rank updates to linear layers (arXiv 2106.09685). Prompt tuning (arXiv 2104.08691) puts learned
vectors before the input of the model, in an encoder-decoder before the input of the encoder. This project
inserts them itself as rows of the prompt, like the sign words, so that masks, lengths and generation need no
special case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from signllm.distributed.collectives import gathered_parameters
from signllm.errors import UsageError
from signllm.validation import Fraction, PositiveInt, validated

LORA_TARGETS = ("q_proj", "v_proj")
IN_MODEL = "language_model.model."
"""Prefix of the names of LoRA tensors in a SignLLM; ``peft`` saves the rest, without ``.default``."""
VIRTUAL = "language_model.virtual_tokens.embedding.weight"
PEFT_VIRTUAL = "prompt_embeddings"
"""Name of the learned vectors in a SignLLM, and in a file of ``peft``."""
BASE_CLASS = "base_model_class"
"""Key in ``auto_mapping`` of ``peft`` for the class of the model in which adapters were trained."""


@validated
class LoraConfig:
    """Configuration of low-rank adapters (LoRA) in the language model.

    Attributes:
        rank: rank of the update.
        alpha: scale of the update; it is multiplied by alpha / rank.
        dropout: dropout probability of the adapters' input.
        targets: names of the linear layers that have an adapter; None means the default of ``peft`` for the
            model's family, or the queries and values of the attention for an unknown family.
    """

    rank: PositiveInt = 16
    alpha: int = 32
    dropout: Fraction = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


@validated
class PromptTuningConfig:
    """Configuration of prompt tuning: learned vectors before the prompt.

    Attributes:
        tokens: number of vectors; each takes one of the model's positions.
        init: initial values: ``vocabulary``, the embeddings of random tokens; ``text``, the embeddings of
            ``text``, cut or repeated to the number of vectors; ``random``, normally distributed numbers.
        text: text for the initial values, with ``init`` "text".
    """

    tokens: PositiveInt = 20
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    text: str | None = None

    def __post_init__(self) -> None:
        if (self.init == "text") != bool(self.text):
            raise UsageError(
                f"prompt_tuning.init is {self.init} and prompt_tuning.text {self.text!r}",
                where="text",
                remedy="give a text together with init text, or neither",
            )


def build_peft_config(config: LoraConfig | PromptTuningConfig, model: Any, *, tokenizer: str = "") -> Any:
    """Return the ``peft`` configuration of adapters.

    Args:
        config: configuration of the adapters.
        model: ``transformers`` configuration of the language model.
        tokenizer: folder of the tokenizer; only needed to build vectors with ``init`` "text".
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
        num_transformer_submodules=1,  # otherwise peft adds a prompt to the decoder as well
        prompt_tuning_init=kinds[config.init],
        prompt_tuning_init_text=config.text,
        tokenizer_name_or_path=tokenizer if config.init == "text" else None,
    )


def add_lora(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Add trainable LoRA adapters to a frozen model.

    Raises:
        UsageError: the model has no layer with a name in ``config.targets``.
    """
    from peft import get_peft_model

    try:
        adapted = get_peft_model(model, build_peft_config(config, model.config))
    except ValueError as error:
        raise UsageError(
            f"adapters cannot be added to the language model: {str(error).splitlines()[0]}",
            where="language_model.lora.targets",
            remedy="give names of linear layers of this model",
        ) from None
    return adapted


def build_virtual_tokens(model: Any, config: PromptTuningConfig, *, tokenizer: str) -> nn.Module:
    """Build the learned vectors of prompt tuning for a model, as a ``peft`` embedding.

    Every rank must call this, because ZeRO-3 may have partitioned the model. With ``init`` "vocabulary" and
    "random", the values come from torch's global generator, which must have the same seed on every rank.

    Args:
        model: ``transformers`` model, partitioned or not.
        config: configuration of prompt tuning.
        tokenizer: folder of the tokenizer.
    """
    from peft import PromptEmbedding

    table = model.get_input_embeddings()
    settings = build_peft_config(config, model.config, tokenizer=tokenizer)
    settings.token_dim = int(table.embedding_dim)
    with gathered_parameters([table.weight]):
        return PromptEmbedding(settings, table)


def is_adapter(name: str) -> bool:
    """Return whether a tensor of SignLLM is part of an adapter: of LoRA or of prompt tuning."""
    return name == VIRTUAL or name.startswith(IN_MODEL)


def to_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the adapter tensors of a SignLLM to the names that ``peft`` uses in a file."""
    return {
        PEFT_VIRTUAL if name == VIRTUAL else name.removeprefix(IN_MODEL).replace(".default.", "."): tensor
        for name, tensor in tensors.items()
    }


def from_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the adapter tensors in a file of ``peft`` to the names that they have in a SignLLM."""
    renamed = {}
    for name, tensor in tensors.items():
        part, _, kind = name.rpartition(".")
        renamed[VIRTUAL if name == PEFT_VIRTUAL else f"{IN_MODEL}{part}.default.{kind}"] = tensor
    return renamed
