"""The decoder draws what characters tell: here each code has a picture of its own, so it can know them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from signllm.cra.word_codebook import WordCodebook
from signllm.data.index import ShardIndex, Split
from signllm.errors import UsageError
from signllm.evaluation.report.frames import Film
from signllm.inspection import reconstruction
from signllm.inspection.reading import Reading
from signllm.inspection.reconstruction import ReconstructionConfig, reconstruct

CODES, SIDE = 4, 16
SMALL = ReconstructionConfig(side=SIDE, videos=6, steps=120, batch_size=16, width=8, learning_rate=1e-2)


def pictures() -> np.ndarray:
    """One picture (S, S, 3) for each code: a bright quarter of a dark square."""
    drawn = np.full((CODES, SIDE, SIDE, 3), 20, np.uint8)
    half = SIDE // 2
    for code in range(CODES):
        row, column = divmod(code, 2)
        drawn[code, half * row : half * (row + 1), half * column : half * (column + 1)] = 230
    return drawn


@pytest.fixture
def told(composed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Videos whose middle frames show their characters' pictures."""
    drawn = np.random.default_rng(0)
    known = {name: [drawn.integers(0, CODES, 9) for _ in range(6)] for name in ("train", "dev")}
    words = WordCodebook(codes=CODES, words=(), frequencies=(1,) * (CODES + 1), alpha=None, codebook="x")

    def read(run: Path, shards: Path, name: str) -> Reading:
        return Reading(
            stage="pretrain",
            words=words,
            split=ShardIndex(shards).split(name),
            places=tuple(range(6)),
            sequences=tuple(known[name]),
            max_frames=300,
            is_recorded=True,
            codebook_moved=False,
        )

    def film(split: Split, place: int, most: int, fps: float | None) -> Film:
        frames = pictures()[np.repeat(known[split.name][place], 4)]
        return Film(frames=np.concatenate([np.repeat(frames[:1], 4, axis=0), frames, frames[-9:]]))

    monkeypatch.setattr(reconstruction, "read_characters", read)
    monkeypatch.setattr(reconstruction, "film_of", film)
    return composed


def test_what_characters_tell_is_drawn_and_what_others_tell_is_not(told: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "drawn.png"
    found = reconstruct(told / "pretrain", told / "shards", out, SMALL)
    assert found["psnr"] > 20 > found["psnr_mean_picture"] > found["psnr_other_video"] > 0
    assert found["pictures"] == found["training_pictures"] == 6 * 9
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 20
    assert reconstruct(told / "pretrain", told / "shards", None, SMALL) == found


def test_real_videos_of_a_composed_run(composed: Path) -> None:
    few = ReconstructionConfig(side=8, videos=3, steps=2, batch_size=4, width=4)
    found = reconstruct(composed / "pretrain", composed / "shards", None, few)
    assert 0 < found["psnr"] < 60
    assert found["pictures"] > 0


@pytest.mark.parametrize("setting", [{"side": 12}, {"steps": 0}, {"videos": -1}])
def test_settings_that_cannot_be(setting: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        ReconstructionConfig(**setting)
