"""The decoder learns to draw a picture for each code; here each code has a picture of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from signllm.cra.word_codebook import WordCodebook
from signllm.data.shards.index import ShardIndex, Split
from signllm.errors import UsageError
from signllm.experiments import reconstruction
from signllm.experiments.encoded_split import EncodedSplit
from signllm.experiments.reconstruction import ReconstructionConfig, reconstruct
from signllm.reporting.video_frames import VideoFrames

CODES, SIDE = 4, 16
SMALL = ReconstructionConfig(side=SIDE, videos=6, steps=120, batch_size=16, width=8, learning_rate=1e-2)


def code_pictures() -> np.ndarray:
    """One picture (S, S, 3) for each code: a bright quarter of a dark square."""
    drawn = np.full((CODES, SIDE, SIDE, 3), 20, np.uint8)
    half = SIDE // 2
    for code in range(CODES):
        row, column = divmod(code, 2)
        drawn[code, half * row : half * (row + 1), half * column : half * (column + 1)] = 230
    return drawn


@pytest.fixture
def drawn_codes(composed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A composed run whose videos show, at the middle frame of each clip, the picture of its character."""
    rng = np.random.default_rng(0)
    sequences = {name: [rng.integers(0, CODES, 9) for _ in range(6)] for name in ("train", "dev")}
    words = WordCodebook(codes=CODES, words=(), frequencies=(1,) * (CODES + 1), alpha=None, codebook="x")

    def load(run: Path, shards: Path, name: str) -> EncodedSplit:
        return EncodedSplit(
            stage="pretrain",
            words=words,
            split=ShardIndex(shards).split(name),
            places=tuple(range(6)),
            sequences=tuple(sequences[name]),
            max_frames=300,
            is_recorded=True,
            codebook_moved=False,
        )

    def decode(split: Split, place: int, most: int, fps: float | None) -> VideoFrames:
        frames = code_pictures()[np.repeat(sequences[split.name][place], 4)]
        return VideoFrames(frames=np.concatenate([np.repeat(frames[:1], 4, axis=0), frames, frames[-9:]]))

    monkeypatch.setattr(reconstruction, "load_or_encode_split", load)
    monkeypatch.setattr(reconstruction, "load_video_frames", decode)
    return composed


def test_own_characters_reconstruct_the_video_and_those_of_another_video_do_not(
    drawn_codes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "drawn.png"
    result = reconstruct(drawn_codes / "pretrain", drawn_codes / "shards", out, SMALL)
    assert result["psnr"] > 20 > result["psnr_mean_picture"] > result["psnr_other_video"] > 0
    assert result["pictures"] == result["training_pictures"] == 6 * 9
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 20
    assert reconstruct(drawn_codes / "pretrain", drawn_codes / "shards", None, SMALL) == result


def test_real_videos_of_a_composed_run(composed: Path) -> None:
    few = ReconstructionConfig(side=8, videos=3, steps=2, batch_size=4, width=4)
    result = reconstruct(composed / "pretrain", composed / "shards", None, few)
    assert 0 < result["psnr"] < 60
    assert result["pictures"] > 0


@pytest.mark.parametrize("setting", [{"side": 12}, {"steps": 0}, {"videos": -1}])
def test_invalid_settings_are_named(setting: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        ReconstructionConfig(**setting)
