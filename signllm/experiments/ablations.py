"""The ablations: functions from the full recipe to a recipe in which one part is left out or changed.

To add an ablation, write one more function and list it in :data:`ABLATIONS`. The function's name is the name
of its folder and the value that ``--only`` takes; the first line of its docstring is its row of the table. A
stage that two ablations configure identically, together with all stages before it, is trained once and
reused.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from signllm.config import Recipe
from signllm.errors import UsageError
from signllm.models.sign_llm import LoraConfig

FULL = "full"


@dataclass(frozen=True, kw_only=True)
class AblationInputs:
    """Inputs that some ablations need in addition to the recipe.

    Attributes:
        encoder_decoder_llm: folder or name of an encoder-decoder language model; None if there is none.
        words: number of words of two or more characters of the full model; None before they are composed.
    """

    encoder_decoder_llm: str | None = None
    words: int | None = None


Ablation = Callable[[Recipe, AblationInputs], Recipe]


def full(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Full model."""
    return recipe


def no_vq(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Without VQ: continuous features.

    There are no characters and therefore no words, and L_VQ consists of L_cp only. Everything else stays the
    same. In the epochs with a frozen encoder, its recorded features replace the recorded characters.
    """
    quantizer = replace(recipe.pretrain.vq_sign.quantizer, update="none", levels=(), revive_dead_after=0)
    return _change_vq_sign(recipe, quantizer=quantizer)


def fsq(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Finite scalar quantization instead of a codebook.

    The number of codes is the nearest to that of the full model that 5 to 8 levels per number can have.
    """
    levels = nearest_levels(recipe.pretrain.vq_sign.quantizer.codes)
    quantizer = replace(
        recipe.pretrain.vq_sign.quantizer,
        update="fsq",
        levels=levels,
        codes=math.prod(levels),
        revive_dead_after=0,
    )
    return _change_vq_sign(recipe, quantizer=quantizer)


def characters(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Without CRA: characters only."""
    return _change_words(recipe, size=0)


def bpe(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Byte-pair words instead of optimal transport.

    The words are the first candidates in the order in which byte-pair encoding learns them, as many as the
    full model has. None is dropped by transport, and the segmentation applies the merges in the same order.
    """
    size = recipe.compose.words.size if inputs.words is None else inputs.words
    transport = replace(recipe.compose.words.transport, keep_share=0.0)
    return _change_words(recipe, size=size, segmentation="bpe", transport=transport)


def no_mmd(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Without MMD."""
    return _change_sign_llm(recipe, mmd_weight=0.0)


def no_pretraining(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Without pretraining: stage 3 alone.

    Stage 3 starts from a randomly initialized encoder, without whitening because that uses the data, and from
    the initial codebook of the configuration.
    """
    pretrain = recipe.pretrain
    encoder = replace(pretrain.vq_sign.encoder, whitened_start=False)
    pretrain = replace(pretrain, training=replace(pretrain.training, steps=0))
    return _change_vq_sign(replace(recipe, pretrain=pretrain), encoder=encoder)


def no_context(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Without context prediction: L_VQ is L_q."""
    return _change_vq_sign(recipe, context_weight=0.0)


def half_codes(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Half as many codes."""
    return _change_codes(recipe, recipe.pretrain.vq_sign.quantizer.codes // 2)


def double_codes(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Twice as many codes."""
    return _change_codes(recipe, recipe.pretrain.vq_sign.quantizer.codes * 2)


def frozen_encoder(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """Encoder frozen throughout stage 3.

    Raises:
        UsageError: The recipe gives a number of steps instead of epochs.
    """
    epochs = recipe.finetune.training.epochs
    if epochs is None:
        raise UsageError(
            "the encoder can only be frozen for whole epochs, and the recipe gives no number of epochs",
            where="ablation frozen_encoder",
            remedy="give --finetune.training.epochs, or leave it out with --only",
        )
    return replace(recipe, finetune=replace(recipe.finetune, frozen_epochs=epochs))


def lora(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """With LoRA in the language model."""
    model = recipe.finetune.sign_llm.language_model
    return _change_sign_llm(recipe, language_model=replace(model, lora=LoraConfig()))


def encoder_decoder(recipe: Recipe, inputs: AblationInputs) -> Recipe:
    """With an encoder-decoder language model.

    Raises:
        UsageError: No encoder-decoder language model is given.
    """
    if inputs.encoder_decoder_llm is None:
        raise UsageError(
            "no encoder-decoder language model is given",
            where="ablation encoder_decoder",
            remedy="add --encoder-decoder-llm FOLDER|NAME, for example flan-t5-xl",
        )
    return replace(recipe, finetune=recipe.finetune.with_llm(inputs.encoder_decoder_llm))


ABLATIONS: dict[str, Ablation] = {
    ablation.__name__: ablation
    for ablation in (
        full,
        no_vq,
        fsq,
        characters,
        bpe,
        no_mmd,
        no_pretraining,
        no_context,
        half_codes,
        double_codes,
        frozen_encoder,
        lora,
        encoder_decoder,
    )
}
"""All ablations in the order of the table. The full model comes first; the others are compared with it."""


def ablation_title(name: str) -> str:
    """Return the title of an ablation in the table; a folder of no known ablation is shown by its name."""
    documentation = ABLATIONS[name].__doc__ if name in ABLATIONS else name
    return str(documentation).partition("\n")[0].rstrip(".")


def select_ablations(only: Sequence[str], inputs: AblationInputs) -> list[str]:
    """Return the names of the ablations to run, in the order of the table.

    Args:
        only: names of ablations; if empty, every ablation whose inputs are available is selected.
        inputs: inputs of ablations that are available.

    Raises:
        UsageError: There is no ablation of this name.
    """
    for name in only:
        if name not in ABLATIONS:
            similar = difflib.get_close_matches(name, ABLATIONS, n=1)
            raise UsageError(
                f"there is no ablation {name!r}",
                where="--only",
                remedy=f"did you mean {similar[0]}?" if similar else f"use one of {', '.join(ABLATIONS)}",
            )
    selected = only or [name for name in ABLATIONS if name != "encoder_decoder" or inputs.encoder_decoder_llm]
    return [name for name in ABLATIONS if name in selected]


def nearest_levels(codes: int) -> tuple[int, ...]:
    """Return the levels of finite scalar quantization whose product is nearest to a number of codes.

    Each is between 5 and 8, as in table 1 of Mentzer et al. (2023), and they decrease.
    """
    most = math.ceil(math.log(codes, 5))
    choices = [
        levels
        for numbers in range(1, most + 1)
        for levels in itertools.combinations_with_replacement(range(8, 4, -1), numbers)
    ]
    return min(choices, key=lambda levels: abs(math.prod(levels) - codes))


def _change_vq_sign(recipe: Recipe, **changes: Any) -> Recipe:
    """Return the recipe with other settings of VQ-Sign."""
    pretrain = recipe.pretrain
    return replace(recipe, pretrain=replace(pretrain, vq_sign=replace(pretrain.vq_sign, **changes)))


def _change_codes(recipe: Recipe, codes: int) -> Recipe:
    """Return the recipe with another number of codes; with levels, the nearest number that they can have."""
    quantizer = recipe.pretrain.vq_sign.quantizer
    levels = nearest_levels(codes) if quantizer.levels else ()
    codes = math.prod(levels) if levels else codes
    return _change_vq_sign(recipe, quantizer=replace(quantizer, codes=codes, levels=levels))


def _change_words(recipe: Recipe, **changes: Any) -> Recipe:
    """Return the recipe with other settings of the composition of words."""
    return replace(recipe, compose=replace(recipe.compose, words=replace(recipe.compose.words, **changes)))


def _change_sign_llm(recipe: Recipe, **changes: Any) -> Recipe:
    """Return the recipe with other settings of the model of stage 3."""
    finetune = recipe.finetune
    return replace(recipe, finetune=replace(finetune, sign_llm=replace(finetune.sign_llm, **changes)))
