"""The stage: videos to words on disk, whatever the ranks and the kills; what still fits is kept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from signllm.config import ComposeConfig, PretrainConfig, save_config
from signllm.cra.composition import WordsConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.characters import list_characters_files, load_split_characters
from signllm.data.loading.mixture import open_mixture
from signllm.data.loading.pipeline import DataConfig, VideoSource
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.frame_folder import encode_png
from signllm.errors import UsageError
from signllm.models.vq_sign.quantizer import QuantizerConfig
from signllm.models.vq_sign.visual_encoder import VisualEncoderConfig
from signllm.models.vq_sign.vq_sign import VQSignConfig, build_vq_sign
from signllm.stages import encoding
from signllm.stages.compose import compose
from signllm.training.checkpoint import TrainingState, save_checkpoint
from signllm.training.engine import TrainingConfig
from tests import warm

VIDEOS, SHARDS = 7, 5
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
            SourceSample(
                id=f"v/{k}", video=video, text=f"text {k}", split="train", language="english", signer=""
            )
        )
    out = tmp_path_factory.mktemp("shards")
    write_shards(
        Annotations(samples=tuple(clips), left_out=()),
        out,
        ShardConfig(encode="frames", size=16, shard_size_mb=0.1),
    )
    assert len(ShardIndex(out).split("train").tars) == SHARDS
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
    save_checkpoint(tmp_path, TrainingState(stage="pretrain", step=1), weights, {}, keep=1)
    return tmp_path


def written(run: Path) -> tuple[bytes, bytes, dict[str, list[int]], str]:
    """What is on disk; safetensors orders the names in a header by chance, so characters count as read."""
    characters, codebook = load_split_characters(run, "train")
    words = (run / "words.json").read_bytes(), (run / "words.safetensors").read_bytes()
    return *words, {id: sequence.tolist() for id, sequence in characters.items()}, codebook


def test_characters_and_words_are_written_and_fit_together(run: Path, shards: Path) -> None:
    words = compose(run, open_mixture(shards), CONFIG)
    assert WordCodebook.load(run) == words
    characters, codebook = load_split_characters(run, "train")
    assert [path.name for path in list_characters_files(run, "train")] == [
        f"train-{shard:06d}.safetensors" for shard in range(SHARDS)
    ]
    assert list(characters) == [sample.id for sample in ShardIndex(shards).split("train").samples]
    assert codebook == words.codebook
    frames = {sample.id: sample.frames for sample in ShardIndex(shards).split("train").samples}
    assert {id: len(c) for id, c in characters.items()} == {id: (n - 13) // 4 + 1 for id, n in frames.items()}
    assert len({c for sequence in characters.values() for c in sequence.tolist()}) > 2
    assert len(words.words) > 0


def command(run: Path, shards: Path) -> list[str]:
    """The command line of ``CONFIG`` on two ranks; a process that reads ahead makes each shard take time."""
    options = "--ranks 2 --batch-size 4 --data.size 16 --data.workers 1 --words.min-size 0"
    words = "--words.increment 2 --words.longest-word 4"
    arguments = ["compose", "--run", str(run), "--data", str(shards), *options.split(), *words.split()]
    return [warm.python(), "-m", "signllm", *arguments]


def outside() -> dict[str, str]:
    """The environment without what ``start_distributed`` put there for this process."""
    started = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    return {name: value for name, value in os.environ.items() if name not in started}


def test_killed_in_the_middle_it_goes_on_and_two_ranks_write_what_one_writes(run: Path, shards: Path) -> None:
    compose(run, open_mixture(shards), CONFIG)
    alone = written(run)
    (run / "words.json").unlink()
    for path in list_characters_files(run, "train"):
        path.unlink()
    checkout = Path(__file__).parents[2]
    killed = subprocess.Popen(
        command(run, shards), env=outside(), cwd=checkout, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not list_characters_files(run, "train"):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=60)
    times = {path: path.stat().st_mtime_ns for path in list_characters_files(run, "train")}
    assert 0 < len(times) < SHARDS
    assert not (run / "words.json").exists()
    again = command(run, shards)
    done = subprocess.run(again, env=outside(), cwd=checkout, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert written(run) == alone
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards that are encoded, in order."""
    shards: list[int] = []
    plain = encoding.encode_batches

    def counting(vq_sign: object, split: object, shard: int, *rest: object) -> object:
        shards.append(shard)
        return plain(vq_sign, split, shard, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "encode_batches", counting)
    return shards


def test_what_is_whole_is_kept_and_what_no_longer_fits_is_made_again(
    run: Path, shards: Path, encoded: list[int]
) -> None:
    every = list(range(SHARDS))
    first = compose(run, open_mixture(shards), CONFIG)
    assert compose(run, open_mixture(shards), CONFIG) == first
    other = replace(CONFIG, words=replace(CONFIG.words, size=1))
    assert len(compose(run, open_mixture(shards), other).words) <= 1
    assert encoded == every
    compose(run, open_mixture(shards), replace(CONFIG, data=replace(DATA, max_frames=50)))
    assert encoded == every * 2
    assert compose(run, open_mixture(shards), CONFIG) == first
    assert encoded == every * 3
    (run / "words.json").unlink()
    (run / "characters" / "train-000002.safetensors").write_bytes(b"half of it")
    assert compose(run, open_mixture(shards), CONFIG) == first
    assert encoded == [*every * 3, 2]
    (run / "words.png").unlink()
    assert compose(run, open_mixture(shards), CONFIG) == first
    assert (run / "words.png").is_file()


def test_files_of_shards_that_there_are_no_more_go(run: Path, shards: Path, encoded: list[int]) -> None:
    first = compose(run, open_mixture(shards), CONFIG)
    source = run / "characters" / "train-000000.safetensors"
    (run / "characters" / "train-000009.safetensors").write_bytes(source.read_bytes())
    assert compose(run, open_mixture(shards), CONFIG) == first
    assert len(list_characters_files(run, "train")) == SHARDS == len(encoded)


def test_another_picture_size_is_refused(run: Path, shards: Path) -> None:
    with pytest.raises(UsageError, match=r"16 pixels, not 32[\s\S]*--data.size 16"):
        compose(run, open_mixture(shards), replace(CONFIG, data=replace(DATA, size=32)))


def test_a_run_without_a_checkpoint_or_of_no_stage_is_refused(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        compose(tmp_path / "nothing", open_mixture(shards), CONFIG)
    with pytest.raises(UsageError, match="manifest"):
        compose(run, open_mixture(tmp_path / "nothing"), CONFIG)
    for file in (run / "checkpoints").rglob("COMPLETE"):
        file.unlink()
    with pytest.raises(UsageError, match="no complete checkpoint"):
        compose(run, open_mixture(shards), CONFIG)
    assert not (run / "words.json").exists()


def test_an_encoding_that_cannot_be_read_is_refused_and_leaves_no_words(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    tar = damaged / "train-000001.tar"
    content = bytearray(tar.read_bytes())
    for place in range(0, len(content) - 8):
        if content[place : place + 4] == b"\x89PNG":
            content[place : place + 4] = b"none"
    tar.write_bytes(content)
    with pytest.raises(UsageError, match=r"could not be read, allowed[\s\S]*shards verify"):
        compose(run, open_mixture(damaged), CONFIG)
    assert not (run / "words.json").exists()
    assert [path.name[6:12] for path in list_characters_files(run, "train")] == ["000000"]
