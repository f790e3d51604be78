"""Controls of the demo: an encoder that never learned, and the true signs in place of the video.

Both are run folders of stage 1 like any other, so that stages 2 and 3 treat them as they treat the real one:
*untrained* has the same architecture with random weights and a codebook of k-means centers; *oracle* has the
language's signs as its characters, read from the truth, so that only the frozen language model and the
projector can err.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from signllm.demo.language import content_words, glosses
from signllm.demo.studio import read_truth

if TYPE_CHECKING:
    from signllm.config import ComposeConfig, FinetuneConfig, PretrainConfig
    from signllm.data.loading.mixture import Mixture


def save_untrained(config: PretrainConfig, run: Path, dataset: Mixture) -> None:
    """Write a run of stage 1 that took no step, unless it is there: random encoder, k-means codebook."""
    from signllm.stages.pretrain import pretrain

    encoder = dataclasses.replace(config.vq_sign.encoder, backbone_weights=None, whitened_start=False)
    vq_sign = dataclasses.replace(config.vq_sign, encoder=encoder)
    training = dataclasses.replace(config.training, steps=0)
    pretrain(dataclasses.replace(config, vq_sign=vq_sign, training=training), run, dataset)


def save_oracle(config: PretrainConfig, words: ComposeConfig, run: Path, folder: Path) -> None:
    """Write a run of stages 1 and 2 whose characters are the true signs of every training video."""
    import torch

    from signllm.config import open_run
    from signllm.cra.composition import compose_words
    from signllm.cra.word_codebook import fingerprint
    from signllm.data.loading.characters import characters_path, save_characters
    from signllm.models.vq_sign.vq_sign import build_vq_sign

    quantizer = dataclasses.replace(config.vq_sign.quantizer, codes=len(glosses()))
    encoder = dataclasses.replace(config.vq_sign.encoder, backbone_weights=None)
    vq_sign_config = dataclasses.replace(config.vq_sign, encoder=encoder, quantizer=quantizer)
    open_run(run, dataclasses.replace(config, vq_sign=vq_sign_config))
    torch.manual_seed(config.training.seed)
    vq_sign = build_vq_sign(vq_sign_config)
    vq_sign.quantizer.codebook.copy_(torch.randn_like(vq_sign.quantizer.codebook))
    codebook = fingerprint(vq_sign.quantizer.codebook)
    characters = true_characters(folder, "train")
    save_characters(characters_path(run, "train", 0), characters, codebook)
    sequences = list(characters.values())
    counts = np.array([len(sequence) for sequence in sequences])
    # A sign is a word already: nothing is to be composed.
    settings = dataclasses.replace(words.words, size=0)
    compose_words(
        np.concatenate(sequences), counts, codes=len(glosses()), codebook=codebook, config=settings
    ).save(run)
    _save(run, vq_sign.state_dict())


def true_characters(folder: Path, split: str) -> dict[str, np.ndarray]:
    """Return video id → the signs that were made, as numbers in the lexicon's order."""
    number = {gloss: place for place, gloss in enumerate(glosses())}
    return {
        truth["id"]: np.array([number[gloss] for gloss in truth["signs"]])
        for truth in read_truth(folder)
        if truth["split"] == split
    }


def translate_truth(run: Path, folder: Path, shards: Path, split: str, config: FinetuneConfig) -> None:
    """Translate a split's true signs with the oracle's run: hypotheses and scores like any evaluation's."""
    from signllm.data.loading.mixture import open_mixture
    from signllm.data.loading.pipeline import CharacterSource, Loader
    from signllm.metrics.hypotheses import Hypothesis, write_hypotheses_and_scores
    from signllm.metrics.scores import score
    from signllm.stages.trained_model import load_sign_llm

    source = CharacterSource(open_mixture(shards).split(split), true_characters(folder, split))
    model = load_sign_llm(run)
    hypotheses: list[Hypothesis] = []
    for batch in Loader(source, batch_size=10, shuffle=False, epochs=1, workers=0):
        written = model.generate(batch, config.generation)
        for place in range(len(batch)):
            if batch.is_real[place]:
                hypotheses.append(
                    Hypothesis(
                        place=len(hypotheses),
                        id=batch.ids[place],
                        hypothesis=written[place].text,
                        reference=batch.texts[place],
                        characters=written[place].characters,
                        words=written[place].words,
                        problem="",
                        language=batch.languages[place],
                    )
                )
    scores = score([each.hypothesis for each in hypotheses], [each.reference for each in hypotheses])
    write_hypotheses_and_scores(run, split, hypotheses, scores | {"split": split})


def content_word_accuracy(hypotheses: Path) -> float:
    """Return the share of the references' content words that are in their hypotheses.

    Args:
        hypotheses: a ``hypotheses.S.jsonl``; a word counts as often as its reference says it.
    """
    content, translated, total = content_words(), 0, 0
    for line in hypotheses.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        written = record["hypothesis"].split()
        for word in record["reference"].split():
            if word in content:
                total += 1
                translated += word in written
    return translated / max(1, total)


def _save(run: Path, weights: dict) -> None:
    from signllm.training.checkpoint import TrainingState, save_checkpoint

    tensors = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    save_checkpoint(run, TrainingState(stage="pretrain", step=0), tensors, {}, keep=1)
