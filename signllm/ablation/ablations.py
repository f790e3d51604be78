"""The ablations: each is a function from the full recipe to the recipe without some part of it.

A further one is one more function here, in :data:`ABLATIONS`: its name is its folder and what ``--only``
takes, the first line of its docstring its row of the table. What it leaves as it was is not trained again: a
stage whose configuration, and those of the stages before it, are an earlier ablation's is that one's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from signllm.config import Recipe
from signllm.errors import UsageError
from signllm.models.sign_llm import LoraConfig

FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an ablation may need beside the recipe.

    Attributes:
        encoder_decoder_llm: a language model of that kind, folder or name; None: there is none.
        words: how many words of two characters and more the full model composed; None while it has none.
    """

    encoder_decoder_llm: str | None = None
    words: int | None = None


Ablation = Callable[[Recipe, Given], Recipe]


def full(recipe: Recipe, given: Given) -> Recipe:
    """Full model."""
    return recipe


def no_vq(recipe: Recipe, given: Given) -> Recipe:
    """Without VQ: continuous features.

    There are no characters, so there are no words, and L_VQ is L_cp. Everything else is the same, the epochs
    with the encoder at rest too: its features are recorded instead of characters.
    """
    quantizer = replace(recipe.pretrain.vq_sign.quantizer, update="none", revive_dead_after=0)
    return _vq_sign(recipe, quantizer=quantizer)


def characters(recipe: Recipe, given: Given) -> Recipe:
    """Without CRA: characters only."""
    return _words(recipe, size=0)


def bpe(recipe: Recipe, given: Given) -> Recipe:
    """Byte-pair words, as many, instead of transport.

    The same candidates in the order in which byte-pair encoding learns them, as many as the full model has
    words, none dropped by transport, and applied in that order.
    """
    size = recipe.compose.words.size if given.words is None else given.words
    transport = replace(recipe.compose.words.transport, keep_share=0.0)
    return _words(recipe, size=size, segmentation="bpe", transport=transport)


def no_mmd(recipe: Recipe, given: Given) -> Recipe:
    """Without MMD."""
    return _sign_llm(recipe, mmd_weight=0.0)


def no_pretraining(recipe: Recipe, given: Given) -> Recipe:
    """Without pretraining: stage 3 alone.

    The encoder as it is initialised (no whitening, which looks at the data), and the codebook that its
    configuration starts with.
    """
    pretrain = recipe.pretrain
    encoder = replace(pretrain.vq_sign.encoder, whitened_start=False)
    pretrain = replace(pretrain, training=replace(pretrain.training, steps=0))
    return _vq_sign(replace(recipe, pretrain=pretrain), encoder=encoder)


def no_context(recipe: Recipe, given: Given) -> Recipe:
    """Without context prediction: L_VQ is L_q."""
    return _vq_sign(recipe, context_weight=0.0)


def half_codes(recipe: Recipe, given: Given) -> Recipe:
    """Half as many codes."""
    return _codes(recipe, recipe.pretrain.vq_sign.quantizer.codes // 2)


def double_codes(recipe: Recipe, given: Given) -> Recipe:
    """Twice as many codes."""
    return _codes(recipe, recipe.pretrain.vq_sign.quantizer.codes * 2)


def frozen_encoder(recipe: Recipe, given: Given) -> Recipe:
    """Encoder at rest in stage 3.

    Raises:
        UsageError: the recipe counts steps, not epochs.
    """
    epochs = recipe.finetune.training.epochs
    if epochs is None:
        raise UsageError(
            "the encoder rests for whole epochs, and the recipe has none",
            where="ablation frozen_encoder",
            remedy="give --finetune.training.epochs, or leave it out with --only",
        )
    return replace(recipe, finetune=replace(recipe.finetune, frozen_epochs=epochs))


def lora(recipe: Recipe, given: Given) -> Recipe:
    """With LoRA in the language model."""
    model = recipe.finetune.sign_llm.language_model
    return _sign_llm(recipe, language_model=replace(model, lora=LoraConfig()))


def encoder_decoder(recipe: Recipe, given: Given) -> Recipe:
    """With an encoder-decoder language model.

    Raises:
        UsageError: none was given.
    """
    if given.encoder_decoder_llm is None:
        raise UsageError(
            "there is no encoder-decoder language model",
            where="ablation encoder_decoder",
            remedy="--encoder-decoder-llm FOLDER|NAME, for example flan-t5-xl",
        )
    return replace(recipe, finetune=recipe.finetune.with_llm(given.encoder_decoder_llm))


ABLATIONS: dict[str, Ablation] = {
    ablation.__name__: ablation
    for ablation in (
        full,
        no_vq,
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
"""In the order of the table; the full model is first, and the others are held against it."""


def title(name: str) -> str:
    """Return an ablation's row of the table; a name that is none any more is its own."""
    about = ABLATIONS[name].__doc__ if name in ABLATIONS else name
    return str(about).partition("\n")[0].rstrip(".")


def chosen(only: Sequence[str], given: Given) -> list[str]:
    """Return the ablations asked for, all that are possible by default, in the order of the table.

    Raises:
        UsageError: there is none of a name.
    """
    for name in only:
        if name not in ABLATIONS:
            near = difflib.get_close_matches(name, ABLATIONS, n=1)
            raise UsageError(
                f"there is no ablation {name!r}",
                where="--only",
                remedy=f"did you mean {near[0]}?" if near else f"one of {', '.join(ABLATIONS)}",
            )
    asked = only or [name for name in ABLATIONS if name != "encoder_decoder" or given.encoder_decoder_llm]
    return [name for name in ABLATIONS if name in asked]


def _vq_sign(recipe: Recipe, **changes: Any) -> Recipe:
    pretrain = recipe.pretrain
    return replace(recipe, pretrain=replace(pretrain, vq_sign=replace(pretrain.vq_sign, **changes)))


def _codes(recipe: Recipe, codes: int) -> Recipe:
    return _vq_sign(recipe, quantizer=replace(recipe.pretrain.vq_sign.quantizer, codes=codes))


def _words(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, compose=replace(recipe.compose, words=replace(recipe.compose.words, **changes)))


def _sign_llm(recipe: Recipe, **changes: Any) -> Recipe:
    finetune = recipe.finetune
    return replace(recipe, finetune=replace(finetune, sign_llm=replace(finetune.sign_llm, **changes)))
