"""The parameter groups of stage 3: character and word offsets have learning rates of their own."""

from __future__ import annotations

from signllm.config import FinetuneConfig
from signllm.models.sign_llm import SignLLM
from signllm.training.engine import ParameterGroup, TrainingConfig


def parameter_groups(
    model: SignLLM, training: TrainingConfig, config: FinetuneConfig
) -> list[ParameterGroup]:
    """Return groups for the offsets of characters, the offsets of words, and all other parameters.

    An offset learns only from the videos in which its character or word occurs, whereas the projector learns
    from all.
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
