"""The samples of a split, stored in columns to save memory.

10,000 hours of video are six million sentences, which every rank and every worker needs. Python objects would
take several times the memory of their contents. Moreover, accessing an object writes its reference count, so
a worker process would soon have its own copy of all of them. Columns of numbers and one block of text take
335 bytes per sentence of 17 words (``tools/bench_index``) and are shared by all workers of a rank; an object
is made when a sample is accessed.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSample:
    """One sample of a split.

    Args:
        key: WebDataset key, derived from ``id``.
        id: name of the sample in its dataset.
        text: reference sentence.
        language: English name of the spoken language.
        signer: name of the signer, "" if unknown.
        frames: number of frames.
        fps: rate in frames per second.
        width: width of the frames in pixels.
        height: height of the frames in pixels.
        shard: index of its tar in :attr:`~signllm.data.shards.index.Split.tars`.
        members: byte offset and size in that tar of each member, by extension.
    """

    key: str
    id: str
    text: str
    language: str
    signer: str
    frames: int
    fps: float
    width: int
    height: int
    shard: int
    members: dict[str, tuple[int, int]] = field(repr=False)


class SampleTable(Sequence[ShardSample]):
    """An immutable sequence of samples that is stored in columns.

    Args:
        samples: the samples; they are copied one by one into the columns.

    Attributes:
        frames: number of frames of each sample, int64 (n,).
        fps: rate of each sample in frames per second, float64 (n,).
    """

    def __init__(self, samples: Iterable[ShardSample] = ()) -> None:
        keys, ids, texts = _StringPacker(), _StringPacker(), _StringPacker()
        self._named: dict[str, int] = {}
        numbers, rates, members, firsts = array("q"), array("d"), array("q"), array("q", [0])
        for sample in samples:
            keys.append(sample.key)
            ids.append(sample.id)
            texts.append(sample.text)
            named = self._number(sample.language), self._number(sample.signer)
            numbers.extend((sample.frames, sample.width, sample.height, sample.shard, *named))
            rates.append(sample.fps)
            for extension, (offset, size) in sample.members.items():
                members.extend((self._number(extension), offset, size))
            firsts.append(len(members) // 3)
        self._names = tuple(self._named)
        self._keys, self._ids, self._texts = keys.strings(), ids.strings(), texts.strings()
        self._numbers = np.frombuffer(numbers, np.int64).reshape(-1, 6)
        self._members = np.frombuffer(members, np.int64).reshape(-1, 3)
        self._firsts = np.frombuffer(firsts, np.int64)
        self.frames, self.fps = self._numbers[:, 0], np.frombuffer(rates, np.float64)

    def _number(self, name: str) -> int:
        return self._named.setdefault(name, len(self._named))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> ShardSample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ShardSample]: ...
    def __getitem__(self, index: int | slice) -> ShardSample | Sequence[ShardSample]:
        """Return one sample, or the list of samples of a slice."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        frames, width, height, shard, language, signer = self._numbers[place].tolist()
        members = self._members[self._firsts[place] : self._firsts[place + 1]].tolist()
        return ShardSample(
            key=self._keys[place],
            id=self._ids[place],
            text=self._texts[place],
            language=self._names[language],
            signer=self._names[signer],
            frames=frames,
            fps=float(self.fps[place]),
            width=width,
            height=height,
            shard=shard,
            members={self._names[name]: (offset, size) for name, offset, size in members},
        )

    @property
    def ids(self) -> Iterator[str]:
        """Ids of the samples."""
        return iter(self._ids)

    def languages(self) -> Counter[str]:
        """Return the number of samples of each language."""
        return self._counted(4)

    def signers(self) -> Counter[str]:
        """Return the number of samples of each signer."""
        return self._counted(5)

    def _counted(self, column: int) -> Counter[str]:
        numbers, counts = np.unique(self._numbers[:, column], return_counts=True)
        return Counter({self._names[n]: c for n, c in zip(numbers.tolist(), counts.tolist(), strict=True)})


class _PackedStrings(Sequence[str]):
    """A sequence of n strings in one block of memory.

    Args:
        block: concatenated strings as UTF-8.
        ends: end of each string in the block, after a 0, int64 (n + 1,).
    """

    def __init__(self, block: bytes, ends: np.ndarray) -> None:
        self._block, self._ends = block, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        begin, end = self._ends[index], self._ends[index + 1]
        return self._block[begin:end].decode("utf-8", "surrogatepass")


class _StringPacker:
    """Collects strings and packs them into one block of memory."""

    def __init__(self) -> None:
        self._block, self._ends = bytearray(), array("q", [0])

    def append(self, value: str) -> None:
        self._block += value.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._block))

    def strings(self) -> _PackedStrings:
        return _PackedStrings(bytes(self._block), np.frombuffer(self._ends, np.int64))
