"""The stage: videos and a checkpoint to words on disk, equal on 1 and 2 ranks, kept where they still fit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from signllm.config import ComposeConfig, PretrainConfig, save_config
from signllm.cra.composition import WordsConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.data.characters import load_characters
from signllm.data.clip import Annotations, Clip
from signllm.data.frame_folder import encode_png
from signllm.data.index import ShardIndex
from signllm.data.pipeline import DataConfig, VideoSource
from signllm.data.shards import ShardConfig, write_shards
from signllm.errors import UsageError
from signllm.models.quantizer import QuantizerConfig
from signllm.models.visual_encoder import VisualEncoderConfig
from signllm.models.vq_sign import VQSignConfig, build_vq_sign
from signllm.stages import compose as stage
from signllm.stages.compose import CHARACTERS_FILE, compose
from signllm.training.checkpoint import TrainingState, save
from signllm.training.engine import TrainingConfig

VIDEOS = 7
DATA = DataConfig(size=16, workers=0)
ENCODER = VisualEncoderConfig(
    backbone_config={"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"},
    width=8,
)
PRETRAIN = PretrainConfig(
    vq_sign=VQSignConfig(encoder=ENCODER, quantizer=QuantizerConfig(codes=6, update="ema")),
    data=DATA,
    training=TrainingConfig(steps=1, batch_size=2),
)
CONFIG = ComposeConfig(data=DATA, words=WordsConfig(min_size=0, increment=2, longest_word=4), batch_size=4)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos of unequal length: noise with a slow tide in it, so that codes come back."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    clips = []
    for k in range(VIDEOS):
        video = folder / f"video{k}"
        video.mkdir()
        for t in range(60 + 9 * k):
            frame = rng.integers(0, 40, (16, 16, 3)) + int(100 + 100 * np.sin(t / 5 + k % 3))
            (video / f"{t:04d}.png").write_bytes(encode_png(frame.astype(np.uint8)))
        clips.append(
            Clip(id=f"v/{k}", video=video, text=f"text {k}", split="train", language="english", signer="")
        )
    out = tmp_path_factory.mktemp("shards")
    write_shards(
        Annotations(clips=tuple(clips), left_out=()), out, ShardConfig(encode="frames", short_side=16)
    )
    return out


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    """A pretrained run: random weights, and codes taken from the encoder, so that all are in use."""
    torch.manual_seed(0)
    vq_sign = build_vq_sign(PRETRAIN.vq_sign).eval()
    split = ShardIndex(shards).split("train")
    frames = VideoSource(split, DATA).load(0, seed=0, epoch=0, position=0).frames
    assert frames is not None
    packed = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    with torch.no_grad():
        z, _ = vq_sign.encoder(packed, torch.tensor([len(packed)]))
        vq_sign.quantizer.codebook.copy_(z[:: max(1, len(z) // 6)][:6])
    save_config(tmp_path, PRETRAIN)
    weights = {name: tensor.detach().contiguous() for name, tensor in vq_sign.state_dict().items()}
    save(tmp_path, TrainingState(stage="pretrain", step=1), weights, {}, keep=1)
    return tmp_path


def written(run: Path) -> tuple[bytes, bytes, dict[str, list[int]], str]:
    """What is on disk; safetensors orders the names in a header by chance, so characters count as read."""
    characters, codebook = load_characters(run / CHARACTERS_FILE)
    words = (run / "words.json").read_bytes(), (run / "words.safetensors").read_bytes()
    return *words, {id: sequence.tolist() for id, sequence in characters.items()}, codebook


def test_characters_and_words_are_written_and_fit_together(run: Path, shards: Path) -> None:
    words = compose(run, shards, CONFIG)
    assert WordCodebook.load(run) == words
    characters, codebook = load_characters(run / CHARACTERS_FILE)
    assert list(characters) == [sample.id for sample in ShardIndex(shards).split("train").samples]
    assert codebook == words.codebook
    frames = {sample.id: sample.frames for sample in ShardIndex(shards).split("train").samples}
    assert {id: len(c) for id, c in characters.items()} == {id: (n - 13) // 4 + 1 for id, n in frames.items()}
    assert len({c for sequence in characters.values() for c in sequence.tolist()}) > 2
    assert len(words.words) > 0


def test_two_ranks_write_what_one_writes(run: Path, shards: Path) -> None:
    compose(run, shards, CONFIG)
    alone = written(run)
    for name in (CHARACTERS_FILE, "words.json", "words.safetensors"):
        (run / name).unlink()
    options = (
        "--ranks 2 --batch-size 4 --data.size 16 --data.workers 0 --words.min-size 0 --words.increment 2"
    )
    arguments = [
        "compose",
        "--run",
        str(run),
        "--data",
        str(shards),
        *options.split(),
        "--words.longest-word",
        "4",
    ]
    started = {
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
    }  # by start_distributed, for this process
    environment = {name: value for name, value in os.environ.items() if name not in started}
    checkout = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "signllm", *arguments],
        env=environment,
        cwd=checkout,
        timeout=600,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert written(run) == alone


def test_what_is_whole_is_kept_and_what_no_longer_fits_is_made_again(
    run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    plain = stage.encode_split

    def counting(*arguments: object, **options: object) -> object:
        encoded.append(1)
        return plain(*arguments, **options)

    monkeypatch.setattr(stage, "encode_split", counting)
    first = compose(run, shards, CONFIG)
    assert compose(run, shards, CONFIG) == first
    other = replace(CONFIG, words=replace(CONFIG.words, size=1))
    assert len(compose(run, shards, other).words) <= 1
    assert len(encoded) == 1
    compose(run, shards, replace(CONFIG, data=replace(DATA, max_frames=50)))
    assert len(encoded) == 2
    (run / "words.json").unlink()
    assert compose(run, shards, CONFIG) == first
    assert len(encoded) == 3


def test_another_picture_size_is_refused(run: Path, shards: Path) -> None:
    with pytest.raises(UsageError, match=r"16 pixels, not 32[\s\S]*--data.size 16"):
        compose(run, shards, replace(CONFIG, data=replace(DATA, size=32)))


def test_a_run_without_a_checkpoint_or_of_no_stage_is_refused(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        compose(tmp_path / "nothing", shards, CONFIG)
    with pytest.raises(UsageError, match="manifest"):
        compose(run, tmp_path / "nothing", CONFIG)
    for file in (run / "checkpoints").rglob("COMPLETE"):
        file.unlink()
    with pytest.raises(UsageError, match="no whole checkpoint"):
        compose(run, shards, CONFIG)
    assert not (run / "words.json").exists()
