"""Which parameters of stage 3 learn how fast: offsets of characters and of words by rates of their own."""

from __future__ import annotations

from signllm.config import FinetuneConfig
from signllm.models.sign_llm import SignLLM
from signllm.training.engine import ParameterGroup, TrainingConfig


def parameter_groups(
    model: SignLLM, training: TrainingConfig, config: FinetuneConfig
) -> list[ParameterGroup]:
    """Return everything but these offsets, and each of them, with its multiple of the learning rate.

    An offset learns only from the videos that its character or word occurs in, the projector from all.
    """
    if model.word_vectors is None:
        return [ParameterGroup(name="other", parameters=list(model.parameters()))]
    characters, words = model.word_vectors.characters, model.word_vectors.words
    others = [p for p in model.parameters() if p is not characters and p is not words]
    rate = training.learning_rate
    return [
        ParameterGroup(name="other", parameters=others),
        ParameterGroup(
            name="characters", parameters=[characters], learning_rate=rate * config.character_rate
        ),
        ParameterGroup(name="words", parameters=[words], learning_rate=rate * config.word_rate),
    ]
