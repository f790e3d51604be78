"""In evaluation mode a model sees videos without augmentation, signers as large as in training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from signllm.config import PretrainConfig, load_config
from signllm.data.loading.augment import AugmentConfig
from signllm.data.loading.batch import Batch
from signllm.data.loading.characters import load_split_characters
from signllm.data.loading.mixture import open_mixture
from signllm.data.video.timed_frames import join_chunks, read_timed_chunks
from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.inference.piece_encoding import encode_pieces
from signllm.inference.translate import load
from signllm.inference.video_input import as_video_input
from signllm.stages.compose import compose
from signllm.stages.dev_validation import make_loss_validator
from signllm.stages.encoding import load_vq_sign
from signllm.stages.finetune import finetune
from signllm.stages.pretrain import pretrain
from tests.stages import path

DATA = replace(path.DATA, augment=AugmentConfig(shift=0.5, tempo=0.3, brightness=0.3, mirror=0.5))
DECODED, BEFORE = 48, 8


@pytest.fixture(scope="module")
def encoder(composed: Path) -> Path:
    pretrain(
        replace(path.PRETRAIN, data=DATA),
        run=composed / "augmented",
        dataset=open_mixture(composed / "shards"),
    )
    compose(composed / "augmented", open_mixture(composed / "shards"), path.COMPOSE)
    return composed / "augmented"


class Watching(nn.Module):
    """Keeps the frames of each video that it meets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, np.ndarray] = {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.frames is not None
        parts = batch.frames.permute(0, 2, 3, 1).split(batch.frame_counts.tolist())
        self.seen |= {name: part.numpy() for name, part in zip(batch.ids, parts, strict=True)}
        return {"loss": torch.zeros(())}


def test_validation_sees_the_middle_of_every_frame(composed: Path) -> None:
    watching, training = Watching(), replace(path.TRAINING, batch_size=2)
    validate = make_loss_validator(path.stage_context(composed, composed / "shards"), DATA, training)
    assert validate is not None
    validate(watching, 0)
    assert len(watching.seen) == len(path.LENGTHS["dev"])
    for name, frames in watching.seen.items():
        decoded = join_chunks(read_timed_chunks(composed / name.replace("/", ""), size=DECODED)).frames
        middle = slice(BEFORE, BEFORE + DATA.size)
        np.testing.assert_array_equal(frames, decoded[:, middle, middle])


def test_compose_reads_a_video_as_translate_does(encoder: Path, composed: Path) -> None:
    vq_sign = load_vq_sign(encoder, load_config(encoder, PretrainConfig))
    videos = [as_video_input(composed / f"train{number}") for number in range(len(path.LENGTHS["train"]))]
    signs = [
        translation
        for translation in encode_pieces(videos, vq_sign, DATA, None, start_distributed())
        if translation is not None
    ]
    recorded, _ = load_split_characters(encoder, "train")
    assert [list(translation.characters) for translation in signs] == [
        recorded[f"train/{number}"].tolist() for number in range(len(videos))
    ]
    assert len(set(np.concatenate(list(recorded.values())).tolist())) > 1


def test_evaluate_reads_a_video_as_translate_does(encoder: Path, composed: Path, tmp_path: Path) -> None:
    config = replace(path.finetune_config(composed / "llm", epochs=2), data=DATA)
    finetune(config, run=tmp_path, init=encoder, dataset=open_mixture(composed / "shards"))
    evaluate(tmp_path, composed / "shards", "dev", EvaluateConfig(bootstrap=0))
    evaluated = [json.loads(line) for line in (tmp_path / "hypotheses.dev.jsonl").read_text().splitlines()]
    translated = load(tmp_path).translate([composed / f"dev{number}" for number in range(len(evaluated))])
    read_characters = {
        f"dev/{number}": list(translation.characters) for number, translation in enumerate(translated)
    }
    assert read_characters == {translation["id"]: translation["characters"] for translation in evaluated}
    assert len({character for characters in read_characters.values() for character in characters}) > 1


@pytest.mark.parametrize("name", ["size", "augment.shift"])
def test_pictures_that_the_encoder_did_not_learn_on_are_refused(
    encoder: Path, composed: Path, tmp_path: Path, name: str
) -> None:
    other = replace(DATA, size=64) if name == "size" else replace(DATA, augment=AugmentConfig())
    config = replace(path.finetune_config(composed / "llm"), data=other)
    with pytest.raises(UsageError, match=f"data.{name} "):
        finetune(config, run=tmp_path / "run", init=encoder, dataset=open_mixture(composed / "shards"))
    assert not (tmp_path / "run").exists()
