"""Which parameters of stage 3 learn how fast: the word vectors by a rate of their own."""

from __future__ import annotations

from signllm.models.sign_llm import SignLLM
from signllm.training.engine import ParameterGroup, TrainingConfig


def parameter_groups(model: SignLLM, training: TrainingConfig, word_rate: float) -> list[ParameterGroup]:
    """Return everything but the word vectors, and these, with ``word_rate`` times the learning rate.

    A row of the word vectors learns only from the videos that its word occurs in, the projector from all.
    """
    words = list(model.word_vectors.parameters())
    ids = {id(p) for p in words}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        ParameterGroup(name="other", parameters=others),
        ParameterGroup(name="words", parameters=words, learning_rate=training.learning_rate * word_rate),
    ]
