"""The sources of the samples of a batch: the videos of a split, or their character sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Annotated, Protocol

import numpy as np
from pydantic import Field

from signllm.clip_geometry import CLIP_FRAMES
from signllm.data.loading.augment import AugmentConfig, augment_frames, crop_center, draw_frame_numbers
from signllm.data.loading.batch import LoadedSample
from signllm.data.shards.index import Split
from signllm.data.video.frame_rate import count_frames_to_read, frame_numbers_to_read
from signllm.data.video.packed_frames import PackedFrames
from signllm.data.video.stored_frames import decode_stored_chunks
from signllm.data.weighted_dataset import WeightedDataset
from signllm.errors import UsageError
from signllm.storage import DEFAULT_TIMEOUT_S
from signllm.validation import Limit, NonNegativeFloat, NonNegativeInt, PositiveInt, validated


@validated
class DataConfig:
    """How samples are read.

    Args:
        size: side of the square frames in pixels.
        fps: rate in frames per second at which all videos are read. None: training uses the rate of its
            videos, or their median rate (at least 25 where some have that) if they differ, and records it;
            for a run that recorded no rate, every frame is read.
        max_frames: largest number of frames of a video; of a longer video this many evenly spread frames are
            read. The paper does not state it.
        max_frames_per_batch: largest number of frames of one forward pass over all ranks. With a limit,
            batches contain videos of similar length, and fewer than ``batch_size`` if these are long. None is
            no limit.
        workers: number of processes per rank that decode in the background; 0 decodes in a thread of the
            training process.
        window: number of shards whose samples are shuffled together.
        max_bad: largest share of the samples that may turn out to be damaged during training.
        cache_gb: memory in GiB for decoded videos that a rank keeps, for small datasets; needs ``workers`` 0.
        storage_timeout_s: longest wait of a read for unavailable storage in seconds, after which the run
            ends; 0 does not wait. No sample is replaced because of unavailable storage.
        augment: random augmentation of the videos.
    """

    size: Annotated[int, Field(ge=16)] = 224
    fps: Annotated[float, Field(ge=1, le=240)] | None = None
    max_frames: Annotated[int, Field(ge=CLIP_FRAMES)] = 300
    max_frames_per_batch: int | None = None
    workers: NonNegativeInt = 2
    window: PositiveInt = 16
    max_bad: Limit = 0.01
    cache_gb: NonNegativeFloat = 0.0
    storage_timeout_s: Limit = DEFAULT_TIMEOUT_S
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.max_frames_per_batch is not None and self.max_frames_per_batch < self.max_frames:
            raise UsageError(
                f"data.max_frames_per_batch = {self.max_frames_per_batch} is less than the {self.max_frames} "
                "frames that one video may have (data.max_frames)",
                where="max_frames_per_batch",
                remedy="raise the first or lower the second",
            )
        if self.cache_gb and self.workers:
            raise UsageError(
                f"data.cache_gb = {self.cache_gb} needs data.workers = 0, not {self.workers}, because "
                "each worker would have its own cache",
                where="cache_gb",
                remedy="set data.workers to 0, or use no cache",
            )


class SampleSource(Protocol):
    """Interface of the sources that a :class:`~signllm.data.loading.pipeline.Loader` reads samples from.

    Attributes:
        datasets: datasets that an epoch is mixed from.
        frame_counts: largest number of frames of each sample, int (n,); None if there is no limit of frames.
        config: how samples are read.
    """

    datasets: tuple[WeightedDataset, ...]
    frame_counts: np.ndarray | None
    config: DataConfig

    def __len__(self) -> int:
        """Return the number of samples."""

    def load(
        self, index: int, *, seed: int, epoch: int, position: int, packed: PackedFrames | None = None
    ) -> LoadedSample:
        """Load one sample; a damaged sample has the reason in ``bad``.

        Args:
            index: number of the sample.
            seed: random seed of the run, for the augmentation.
            epoch: number of the epoch, for the augmentation.
            position: position of the sample in the epoch, for the augmentation.
            packed: array to which the frames are appended; None uses a new one.

        Raises:
            StorageError: the storage stayed unavailable, which does not count as damage.
        """


class VideoSource:
    """The decoded videos of a split.

    Args:
        split: split of a :class:`~signllm.data.shards.index.ShardIndex`.
        config: how its samples are read.
        augment: False shows every video unchanged, cropped at the center, as in evaluation.
    """

    def __init__(self, split: Split, config: DataConfig, *, augment: bool = True) -> None:
        self.split, self.config, self.datasets, self.augment = split, config, split.datasets, augment
        samples = split.samples
        frames = count_frames_to_read(samples.frames, samples.fps, config.fps)
        frames = config.augment.count_most_frames(frames) if augment else frames
        self.frame_counts: np.ndarray | None = np.minimum(frames, config.max_frames)
        self._cache: dict[int, np.ndarray] = {}
        self._cache_bytes_left = int(config.cache_gb * 2**30)

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.split)

    def load(
        self, index: int, *, seed: int, epoch: int, position: int, packed: PackedFrames | None = None
    ) -> LoadedSample:
        """Decode one video; a damaged video becomes grey frames, with the reason in ``bad``.

        Raises:
            StorageError: the shard cannot be read.
        """
        sample, size, bad = self.split.samples[index], self.config.size, None
        packed = PackedFrames(sample.frames) if packed is None else packed
        begin = len(packed)
        try:
            chunks = (
                augment_frames(
                    chunk, self.config.augment, size=size, seed=seed, epoch=epoch, position=position
                )
                if self.augment
                else crop_center(chunk, size)
                for chunk in self._read_chunks(index)
            )
            count = packed.extend(chunks)
            if count > self.config.max_frames:
                packed.keep_frames(begin, self._choose_evenly(count))
            if self.config.augment.tempo and self.augment:
                shown = draw_frame_numbers(
                    len(packed) - begin,
                    self.config.augment,
                    most=self.config.max_frames,
                    seed=seed,
                    epoch=epoch,
                    position=position,
                )
                packed.keep_frames(begin, shown)
        except (UsageError, OSError) as error:  # an error of the decoder; reading would raise StorageError
            bad = " ".join(str(error).split())  # on one line, with the shard if its content is wrong
            packed.extend([np.full((CLIP_FRAMES, size, size, 3), 127, np.uint8)])
        frames_THWC = packed.frames_from(begin)
        return LoadedSample(
            id=sample.id, text=sample.text, language=sample.language, frames=frames_THWC, bad=bad
        )

    def _read_chunks(self, index: int) -> Iterable[np.ndarray]:
        """Return the frames of a video in chunks before augmentation, decoded or from the cache."""
        if index in self._cache:
            return [self._cache[index]]
        size = self.config.augment.compute_decoded_size(self.config.size)
        sample, fps = self.split.samples[index], self.config.fps
        chunks: Iterable[np.ndarray] = decode_stored_chunks(self._members(index), size=size)
        if fps is not None and fps != sample.fps:
            chunks = _select_frames(
                chunks, frame_numbers_to_read(sample.frames, sample.fps, fps, self.config.max_frames)
            )
        if not self._cache_bytes_left:
            return chunks
        packed = PackedFrames(sample.frames)
        packed.extend(chunks)
        frames_THWC = packed.all()
        if len(frames_THWC) > self.config.max_frames:
            frames_THWC = frames_THWC[self._choose_evenly(len(frames_THWC))]
        if frames_THWC.nbytes <= self._cache_bytes_left:
            self._cache_bytes_left -= frames_THWC.nbytes
            self._cache[index] = frames_THWC
        return [frames_THWC]

    def _members(self, index: int) -> dict[str, bytes]:
        """Read the members of a sample from its shard, by extension.

        Raises:
            StorageError: the shard cannot be read.
            UsageError: there is another sample at its position, because the shard was rewritten or is
                damaged.
        """
        sample, members = self.split.samples[index], self.split.read(index)
        if members["txt"] != sample.text.encode("utf-8", "surrogatepass"):
            raise UsageError(
                f"the shard has another text than its index for sample {sample.id}",
                where=self.split.tars[sample.shard],
                remedy="`signllm shards verify` names the damage",
            )
        return members

    def _choose_evenly(self, frames: int) -> np.ndarray:
        """Return the numbers of ``max_frames`` evenly spread frames of a longer video."""
        return np.linspace(0, frames - 1, self.config.max_frames).round().astype(int)


def _select_frames(chunks: Iterable[np.ndarray], places: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames of the given ascending numbers from chunks of frames."""
    done = 0
    for chunk in chunks:
        first, end = np.searchsorted(places, (done, done + len(chunk)))
        if end > first:
            yield chunk[places[first:end] - done]
        done += len(chunk)


class CharacterSource:
    """The character sequences of a split, in the same order as its videos, without decoding these.

    Args:
        split: split of a :class:`~signllm.data.shards.index.ShardIndex`. characters: sequence of each id, int
        (N,), from :func:`~signllm.data.loading.characters.load_characters`. config: configuration whose
        ``window`` determines the order.

    Raises:
        UsageError: some videos of the split have no sequence.
    """

    def __init__(
        self, split: Split, characters: Mapping[str, np.ndarray], config: DataConfig | None = None
    ) -> None:
        self.split, self.config, self.datasets = split, config or DataConfig(workers=0), split.datasets
        self.frame_counts: np.ndarray | None = None
        missing = [id for id in split.samples.ids if len(characters.get(id, ())) == 0]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(split)} videos have no character sequence, first {missing[0]}",
                remedy="run signllm compose on these shards",
            )
        self._characters = characters

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.split)

    def load(
        self, index: int, *, seed: int, epoch: int, position: int, packed: PackedFrames | None = None
    ) -> LoadedSample:
        """Return one sequence with its sentence; ``packed`` is not used, because there are no frames."""
        sample = self.split.samples[index]
        return LoadedSample(
            id=sample.id, text=sample.text, language=sample.language, characters=self._characters[sample.id]
        )
