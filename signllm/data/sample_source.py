"""Where a batch's samples come from: videos of a split, or the character sequences read from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from signllm.clip_geometry import CLIP_FRAMES
from signllm.data.augment import AugmentConfig, augment_frames, crop_center, draw_frame_numbers
from signllm.data.batch import LoadedSample
from signllm.data.frame_rate import count_frames_to_read, frame_numbers_to_read
from signllm.data.index import Split
from signllm.data.packed_frames import PackedFrames
from signllm.data.plan import Dataset
from signllm.data.stored_frames import decode_stored_chunks
from signllm.errors import UsageError
from signllm.storage import DEFAULT_TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How samples are read.

    Args:
        size: side of the square pictures in pixels.
        fps: frames per second at which every video is read, whatever its own rate. None: training takes the
            rate of its videos, if they differ the middle one but not less than 25 where some have that, and
            records it; of a run that recorded none, every frame is read.
        max_frames: a longer video is thinned to this many frames spread evenly over it; not stated in the
            paper.
        max_frames_per_batch: most frames of one forward pass, over all ranks; batches then hold videos of
            like length, fewer than ``batch_size`` where they are long. None is no limit.
        workers: processes per rank that decode ahead; 0 decodes ahead in a thread of the training process.
        window: shards whose samples are shuffled together.
        max_bad: share of an epoch's samples that may turn out damaged while training.
        cache_gb: decoded videos that a rank keeps in memory, for small datasets; only with ``workers`` 0.
        storage_timeout_s: seconds that a read waits for storage that is away, before the run ends; 0 does not
            wait. No sample is replaced for it.
        augment: changes drawn per video.
    """

    size: int = 224
    fps: float | None = None
    max_frames: int = 300
    max_frames_per_batch: int | None = None
    workers: int = 2
    window: int = 16
    max_bad: float = 0.01
    cache_gb: float = 0.0
    storage_timeout_s: float = DEFAULT_TIMEOUT_S
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` for a value that cannot work."""
        for name, least in (
            ("size", 16),
            ("max_frames", CLIP_FRAMES),
            ("workers", 0),
            ("window", 1),
            ("max_bad", 0),
            ("cache_gb", 0),
            ("storage_timeout_s", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"data.{name} = {getattr(self, name)}", remedy=f"at least {least}")
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise UsageError(
                f"data.fps = {self.fps}", remedy="1 to 240 frames per second, or nothing for the videos' own"
            )
        if self.max_frames_per_batch is not None and self.max_frames_per_batch < self.max_frames:
            raise UsageError(
                f"data.max_frames_per_batch = {self.max_frames_per_batch}, and one video may have "
                f"{self.max_frames} frames (data.max_frames)",
                remedy="raise the first or lower the second",
            )
        if self.cache_gb and self.workers:
            raise UsageError(
                f"data.cache_gb = {self.cache_gb} with data.workers = {self.workers}: each keeps its own",
                remedy="data.workers 0, or no cache",
            )


class SampleSource(Protocol):
    """What a :class:`~signllm.data.pipeline.Loader` reads from.

    Attributes:
        datasets: what an epoch is mixed of.
        frame_counts: int (n,), most frames of each sample; None if batches are not to be cut by frames.
        config: how it is read.
    """

    datasets: tuple[Dataset, ...]
    frame_counts: np.ndarray | None
    config: DataConfig

    def __len__(self) -> int:
        """Return the number of samples."""

    def load(
        self, index: int, *, seed: int, epoch: int, position: int, packed: PackedFrames | None = None
    ) -> LoadedSample:
        """Return sample ``index``, augmented as the next three decide; a damaged one has ``bad``.

        Storage that stays away is no damage: it raises StorageError. The frames are written behind those of
        ``packed``, if that is given.
        """


class VideoSource:
    """The videos of a split, decoded.

    Args:
        split: of a :class:`~signllm.data.index.ShardIndex`.
        config: how to read it.
        augment: False shows every video unchanged, cropped at the centre, as in evaluation.
    """

    def __init__(self, split: Split, config: DataConfig, *, augment: bool = True) -> None:
        self.split, self.config, self.datasets, self.augment = split, config, split.datasets, augment
        samples = split.samples
        frames = count_frames_to_read(samples.frames, samples.fps, config.fps)
        frames = config.augment.count_most_frames(frames) if augment else frames
        self.frame_counts: np.ndarray | None = np.minimum(frames, config.max_frames)
        self._cache: dict[int, np.ndarray] = {}
        self._room_bytes = int(config.cache_gb * 2**30)

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.split)

    def load(
        self, index: int, *, seed: int, epoch: int, position: int, packed: PackedFrames | None = None
    ) -> LoadedSample:
        """Decode one video; a damaged one is a stand-in of grey frames, with the reason in ``bad``.

        Raises:
            StorageError: the shard cannot be read.
        """
        sample, size, bad = self.split.samples[index], self.config.size, None
        packed = PackedFrames(sample.frames) if packed is None else packed
        begin = len(packed)
        try:
            runs = (
                augment_frames(run, self.config.augment, size=size, seed=seed, epoch=epoch, position=position)
                if self.augment
                else crop_center(run, size)
                for run in self._runs(index)
            )
            count = packed.extend(runs)
            if count > self.config.max_frames:
                packed.keep(begin, self._thinned(count))
            if self.config.augment.tempo and self.augment:
                shown = draw_frame_numbers(
                    len(packed) - begin,
                    self.config.augment,
                    most=self.config.max_frames,
                    seed=seed,
                    epoch=epoch,
                    position=position,
                )
                packed.keep(begin, shown)
        except (UsageError, OSError) as error:  # of the decoder: reading raises StorageError
            bad = " ".join(str(error).split())  # with the shard where that is to blame
            packed.extend([np.full((CLIP_FRAMES, size, size, 3), 127, np.uint8)])
        frames_THWC = packed.since(begin)
        return LoadedSample(
            id=sample.id, text=sample.text, language=sample.language, frames=frames_THWC, bad=bad
        )

    def _runs(self, index: int) -> Iterable[np.ndarray]:
        """Return a video's frames as they are decoded, or from the cache, before augmentation."""
        if index in self._cache:
            return [self._cache[index]]
        size = self.config.augment.compute_decoded_size(self.config.size)
        sample, fps = self.split.samples[index], self.config.fps
        runs: Iterable[np.ndarray] = decode_stored_chunks(self._members(index), size=size)
        if fps is not None and fps != sample.fps:
            runs = _select_frames(
                runs, frame_numbers_to_read(sample.frames, sample.fps, fps, self.config.max_frames)
            )
        if not self._room_bytes:
            return runs
        packed = PackedFrames(sample.frames)
        packed.extend(runs)
        frames_THWC = packed.all()
        if len(frames_THWC) > self.config.max_frames:
            frames_THWC = frames_THWC[self._thinned(len(frames_THWC))]
        if frames_THWC.nbytes <= self._room_bytes:
            self._room_bytes -= frames_THWC.nbytes
            self._cache[index] = frames_THWC
        return [frames_THWC]

    def _members(self, index: int) -> dict[str, bytes]:
        """Read a sample from its shard.

        Raises:
            StorageError: the shard cannot be read.
            UsageError: at its place lies another sample: the shard was made anew, or is damaged.
        """
        sample, members = self.split.samples[index], self.split.read(index)
        if members["txt"] != sample.text.encode("utf-8", "surrogatepass"):
            raise UsageError(
                f"the shard holds another text than its index for sample {sample.id}",
                where=self.split.tars[sample.shard],
                remedy="`signllm shards verify` names the damage",
            )
        return members

    def _thinned(self, frames: int) -> np.ndarray:
        return np.linspace(0, frames - 1, self.config.max_frames).round().astype(int)


def _select_frames(runs: Iterable[np.ndarray], places: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames of these numbers, which ascend, out of runs of frames."""
    done = 0
    for run in runs:
        first, end = np.searchsorted(places, (done, done + len(run)))
        if end > first:
            yield run[places[first:end] - done]
        done += len(run)


class CharacterSource:
    """The character sequences of a split: same samples, same order, nothing decoded.

    Args:
        split: of a :class:`~signllm.data.index.ShardIndex`.
        characters: id → int (N,), as :func:`~signllm.data.characters.load_characters` returns.
        config: its ``window`` decides the order.

    Raises:
        UsageError: sequences are missing for videos of the split.
    """

    def __init__(
        self, split: Split, characters: Mapping[str, np.ndarray], config: DataConfig | None = None
    ) -> None:
        self.split, self.config, self.datasets = split, config or DataConfig(workers=0), split.datasets
        self.frame_counts: np.ndarray | None = None
        missing = [id for id in split.samples.ids if len(characters.get(id, ())) == 0]
        if missing:
            raise UsageError(
                f"no character sequence for {len(missing)} of {len(split)} videos, first {missing[0]}",
                remedy="run signllm compose on these shards",
            )
        self._characters = characters

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.split)

    def load(
        self, index: int, *, seed: int, epoch: int, position: int, packed: PackedFrames | None = None
    ) -> LoadedSample:
        """Return one sequence with its sentence; there are no frames to write."""
        sample = self.split.samples[index]
        return LoadedSample(
            id=sample.id, text=sample.text, language=sample.language, characters=self._characters[sample.id]
        )
