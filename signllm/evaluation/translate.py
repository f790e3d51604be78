"""Translate any video with a fine-tuned run: ``signllm.load(run).translate("clip.mp4").text``.

One path for one video and for thousands: pieces are decoded ahead in threads, read as characters, sorted by
their number within a window so that a batch pads little, translated in batches, and told in their order.
Which pieces share a batch does not depend on ranks: they are dealt afterwards.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from signllm.config import FinetuneConfig, load_config
from signllm.data.batch import Batch, LoadedSample, collate
from signllm.data.recording_pieces import CutRule, Pauses, Windows
from signllm.errors import RunFailedError, UsageError
from signllm.evaluation.footage import Footage, footage_of
from signllm.evaluation.hypotheses import all_bytes
from signllm.evaluation.signs import Signs, read_signs
from signllm.evaluation.translation import Candidate, Translation, word_times
from signllm.models.sign_llm import GenerationConfig
from signllm.plain import from_plain, to_plain
from signllm.stages.finetuned import load_sign_llm
from signllm.stages.frame_rate import warn_if_unknown
from signllm.training.engine import Ranks
from signllm.training.preemption import leave_together

if TYPE_CHECKING:
    from signllm.models.sign_llm import SignLLM

__all__ = ["Candidate", "Pauses", "Translation", "Translator", "Windows", "load"]

BATCH = 8
_BATCHES_SORTED = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Told:
    """What is told of one piece: its translation, or why there is none.

    Attributes:
        video: number of the video that it is of.
        name: of that video.
        translation: None if the video cannot be read.
        problem: then what, where and remedy.
    """

    video: int
    name: str
    translation: Translation | None = None
    problem: tuple[str, str, str] | None = None


class Translator:
    """A fine-tuned run, ready to translate; made by :func:`load`.

    Args:
        model: in evaluation mode, on its device.
        config: of the run: frame size, frame limit, decoding.
        partitioned: whether the language model is, over the ranks, which then all generate equally often.
    """

    def __init__(self, model: SignLLM, config: FinetuneConfig, *, partitioned: bool = False) -> None:
        self.model, self.config, self.partitioned = model, config, partitioned

    def translate(
        self,
        video: Any,
        language: str | None = None,
        *,
        generation: GenerationConfig | None = None,
        fps: float | None = None,
        batch: int = BATCH,
    ) -> Any:
        """Translate one video, or a list of them.

        Args:
            video: a video file, a folder of frame pictures, or frames uint8 (T, H, W, 3) or (T, 3, H, W) in
                RGB, as an array or a tensor; or a list of such.
            language: of the text, in English ("German"), for the prompt; by default that of training.
            generation: how text is decoded; by default as the run says.
            fps: frames per second of pictures and arrays; by default those that the run was trained on. A
                file states its own.
            batch: videos of a list that are translated at a time.

        Returns:
            :class:`Translation`; of a list, a list of them in its order.

        Raises:
            UsageError: no such file, no readable video, or frames of another form.
        """
        several = isinstance(video, list | tuple)
        footage = [footage_of(one, fps) for one in (video if several else [video])]
        told = self.stream(footage, language=language, generation=generation, batch=batch)
        translations = [_or_raise(one) for one in told]
        return translations if several else translations[0]

    def translate_recording(
        self,
        video: Any,
        cut: CutRule,
        language: str | None = None,
        *,
        generation: GenerationConfig | None = None,
        fps: float | None = None,
        batch: int = BATCH,
    ) -> list[Translation]:
        """Translate a long recording piece by piece; no more of it than some pieces is held in memory.

        Args:
            video: as :meth:`translate` takes one.
            cut: :class:`Windows` or :class:`Pauses`.
            language, generation, fps, batch: as :meth:`translate` takes them.

        Returns:
            the pieces in order, with their times in the recording.

        Raises:
            UsageError: as :meth:`translate`, or nothing moves in it.
        """
        told = self.stream(
            [footage_of(video, fps)], cut=cut, language=language, generation=generation, batch=batch
        )
        return [_or_raise(one) for one in told]

    def stream(
        self,
        videos: Sequence[Footage],
        *,
        cut: CutRule | None = None,
        language: str | None = None,
        generation: GenerationConfig | None = None,
        batch: int = BATCH,
        ranks: Ranks | None = None,
    ) -> Iterator[Told]:
        """Yield what became of videos, in their order, as it is known (all ranks; all yield the same).

        Each rank decodes and translates its part; of recordings that are cut, every rank decodes all. A video
        that cannot be read is told and the others go on.

        Raises:
            UsageError: a batch of no videos.
            StoppedEarlyError: asked to leave.
        """
        if batch < 1:
            raise UsageError(f"batch is {batch}", where="--batch", remedy="give 1 or more")
        ranks = ranks or Ranks(device=torch.device("cpu"))
        settings = generation or self.config.generation
        asked = language or settings.language or self.config.generation.language or "English"
        read = read_signs(videos, self.model.vq_sign, self.config.data, cut, ranks)
        size = batch  # at first few, so that the first is known soon
        while True:
            window = _of_all(list(islice(read, size)), Signs, ranks)
            if not window:
                return
            signs = [one for one in window if one is not None]
            assert len(signs) == len(window)  # each piece is some rank's
            yield from self._window(signs, settings, asked, batch, ranks)
            leave_together(ranks.device)
            size = min(2 * size, _BATCHES_SORTED * batch)

    def _window(
        self, window: list[Signs], generation: GenerationConfig, language: str, batch: int, ranks: Ranks
    ) -> Iterator[Told]:
        """Translate pieces in batches of like length, dealt over the ranks; yield them in order."""
        good = [place for place, signs in enumerate(window) if signs.problem is None]
        good.sort(key=lambda place: len(window[place].characters))
        batches = [good[at : at + batch] for at in range(0, len(good), batch)]
        written: list[Translation | None] = [None] * len(window)
        own = batches[ranks.rank :: ranks.world]
        for places in own:
            found = self._written([window[place] for place in places], generation, language)
            for place, one in zip(places, found, strict=True):
                written[place] = one
        if self.partitioned and len(own) < math.ceil(len(batches) / ranks.world):
            self._written([window[good[0]]], generation, language)  # the others wait for this rank's part
        if good:
            written = _of_all(written, Translation, ranks)
        for signs, translation in zip(window, written, strict=True):
            yield Told(signs.video, signs.name, translation, signs.problem)

    @torch.inference_mode()
    def _written(self, pieces: list[Signs], generation: GenerationConfig, language: str) -> list[Translation]:
        begun = time.perf_counter()
        device = next(self.model.parameters()).device
        generated = self.model.generate(_batch_of(pieces, language).to(device), generation)
        share_s = (time.perf_counter() - begun) / len(pieces)
        return [
            Translation(
                text=found.text,
                score=found.candidates[0].score,
                characters=tuple(found.characters),
                words=tuple(found.words),
                word_times=word_times(found.slots, len(found.words), signs.bounds_s),
                candidates=found.candidates,
                start_s=signs.start_s,
                end_s=signs.end_s,
                frames=signs.frames,
                frames_read=signs.frames_read,
                seconds=signs.seconds + share_s,
            )
            for signs, found in zip(pieces, generated, strict=True)
        ]


def load(
    run: Path | str,
    *,
    llm: str | None = None,
    device: torch.device | str | None = None,
    deepspeed: str | None = None,
) -> Translator:
    """Load a fine-tuned run, or an export of one.

    Args:
        run: its folder.
        llm: folder of the language model that it was trained with, if it lies elsewhere here.
        device: where it computes; by default the first GPU if there is one.
        deepspeed: ``zero3`` partitions the language model over the ranks that torchrun or Slurm started, each
            on a device of its own: for one that fits on none of them. All ranks then make the same calls.

    Raises:
        UsageError: neither a run of stage 3 nor an export, of another version, no whole checkpoint, no
            language model, no such device, or a file of another ZeRO stage.
    """
    run = Path(run)
    config = load_config(run, FinetuneConfig)
    warn_if_unknown(config.data)
    if deepspeed is not None:
        if device is not None:
            raise UsageError(
                f"the device {device} for a model that {deepspeed} partitions",
                where="device",
                remedy="leave it out: each rank has one of its own",
            )
        return Translator(load_sign_llm(run, zero_file=deepspeed, llm=llm), config, partitioned=True)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_sign_llm(run, llm=llm)
    try:
        return Translator(model.to(chosen), config)
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0]
        raise UsageError(
            f"the model cannot be moved to {chosen}: {told}", where="device", remedy="cpu, cuda or cuda:N"
        ) from error


def _batch_of(pieces: Sequence[Signs], language: str) -> Batch:
    """Return a batch of characters, or of vectors in single precision as the encoder gave them."""
    read = [np.array(one.characters) for one in pieces]
    items = [
        LoadedSample(
            id=one.name,
            text="",
            language=language,
            characters=given.astype(np.float32) if given.dtype.kind == "f" else given,
        )
        for one, given in zip(pieces, read, strict=True)
    ]
    positions = np.arange(len(items))
    return collate(items, is_real=[True] * len(items), positions=positions, epoch=0, seed=0)


def _or_raise(told: Told) -> Translation:
    if told.problem is not None:
        what, where, remedy = told.problem
        raise UsageError(what, where=where, remedy=remedy)
    assert told.translation is not None
    return told.translation


def _of_all(own: list[T | None], kind: type[T], ranks: Ranks) -> list[T | None]:
    """Return a list of which each rank knows some (all ranks); they travel as JSON.

    Raises:
        RunFailedError: the ranks did not cut recordings alike.
    """
    if ranks.world == 1:
        return own
    texts = all_bytes(json.dumps(to_plain(own)).encode(), ranks)
    parts = [json.loads(text) for text in texts]
    if len({len(part) for part in parts}) > 1:
        raise RunFailedError("the ranks read different videos: is every file the same on each machine?")
    merged: list[T | None] = []
    for known in zip(*parts, strict=True):
        values = [value for value in known if value is not None]
        assert len(values) <= 1
        merged.append(from_plain(kind, values[0], where="another rank") if values else None)
    return merged
