"""Translation of any video with a fine-tuned run: ``signllm.load(run).translate("clip.mp4").text``.

One video and thousands of them take the same path. The videos, or the pieces of long recordings, are decoded
in background threads and encoded as characters. Within a window, they are sorted by their number of
characters, so that a batch contains little padding; they are translated in batches and returned in their
original order. The batches are formed before they are distributed, so which pieces share a batch does not
depend on the number of ranks.
"""

from __future__ import annotations

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
from signllm.data.loading.batch import Batch, LoadedSample, collate
from signllm.data.video.recording_pieces import CutRule, Pauses, Windows
from signllm.distributed.agreement import gather_objects
from signllm.distributed.preemption import stop_if_preempted
from signllm.distributed.ranks import Ranks
from signllm.errors import RunFailedError, UsageError
from signllm.inference.piece_encoding import EncodedPiece, encode_pieces
from signllm.inference.translation import Candidate, Translation, compute_word_times
from signllm.inference.video_input import VideoInput, as_video_input
from signllm.models.sign_llm import GenerationConfig
from signllm.stages.frame_rate import warn_if_no_frame_rate
from signllm.stages.trained_model import load_sign_llm

if TYPE_CHECKING:
    from signllm.models.sign_llm import SignLLM

__all__ = ["Candidate", "Pauses", "Translation", "Translator", "Windows", "load"]

BATCH = 8
_WINDOW_BATCHES = 8
"""Largest number of batches whose pieces are sorted by length together."""
T = TypeVar("T")


@dataclass(frozen=True)
class TranslationOutcome:
    """The translation of one piece, or the reason why there is none.

    Attributes:
        video: index of the video.
        name: name of the video.
        translation: the translation; None if the video cannot be read.
        problem: in that case what went wrong, where, and the remedy.
    """

    video: int
    name: str
    translation: Translation | None = None
    problem: tuple[str, str, str] | None = None


class Translator:
    """A fine-tuned run that is ready to translate; created by :func:`load`.

    Args:
        model: the model in evaluation mode, on its device.
        config: configuration of the run: frame size, frame limit, decoding.
        partitioned: whether the language model is partitioned over the ranks, which then must call its
            forward pass equally often.
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
        """Translate one video, or a list of videos.

        Args:
            video: a video file, a folder of frame pictures, or frames uint8 (T, H, W, 3) or (T, 3, H, W) in
                RGB, as an array or a tensor; or a list of these.
            language: English name of the target language ("German") for the prompt; by default the language
                of training.
            generation: decoding settings; by default those of the run.
            fps: frame rate of pictures and arrays; by default the rate that the run was trained on. Video
                files contain their own.
            batch: number of videos of a list that are translated at a time.

        Returns:
            A :class:`Translation`; for a list, a list of them in the same order.

        Raises:
            UsageError: There is no such file, a video cannot be read, or frames have another type or shape.
        """
        is_list = isinstance(video, list | tuple)
        inputs = [as_video_input(item, fps) for item in (video if is_list else [video])]
        outcomes = self.stream(inputs, language=language, generation=generation, batch=batch)
        translations = [_require_translation(outcome) for outcome in outcomes]
        return translations if is_list else translations[0]

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
        """Translate a long recording piece by piece; only a few pieces are in memory at a time.

        Args:
            video: the recording, in any form that :meth:`translate` accepts.
            cut: :class:`Windows` or :class:`Pauses`.
            language, generation, fps, batch: as in :meth:`translate`.

        Returns:
            The translations of the pieces in order, with their times in the recording.

        Raises:
            UsageError: As in :meth:`translate`, or nothing moves in the recording.
        """
        outcomes = self.stream(
            [as_video_input(video, fps)], cut=cut, language=language, generation=generation, batch=batch
        )
        return [_require_translation(outcome) for outcome in outcomes]

    def stream(
        self,
        videos: Sequence[VideoInput],
        *,
        cut: CutRule | None = None,
        language: str | None = None,
        generation: GenerationConfig | None = None,
        batch: int = BATCH,
        ranks: Ranks | None = None,
    ) -> Iterator[TranslationOutcome]:
        """Yield the outcome of each video or piece in order, as soon as it is known (collective).

        Every rank yields all outcomes. Each rank decodes and translates its part of the videos; recordings
        that are cut are decoded by every rank. A video that cannot be read is reported in its outcome, and
        the others are translated.

        Raises:
            UsageError: ``batch`` is less than 1.
            StoppedEarlyError: The job was asked to stop.
        """
        if batch < 1:
            raise UsageError(f"batch is {batch}", where="--batch", remedy="give 1 or more")
        ranks = ranks or Ranks(device=torch.device("cpu"))
        settings = generation or self.config.generation
        target_language = language or settings.language or self.config.generation.language or "English"
        own_pieces = encode_pieces(videos, self.model.vq_sign, self.config.data, cut, ranks)
        size = batch  # the first window is small, so that the first translations appear soon
        while True:
            merged = _merge_over_ranks(list(islice(own_pieces, size)), ranks)
            if not merged:
                return
            window = [piece for piece in merged if piece is not None]
            assert len(window) == len(merged), "every piece is encoded by exactly one rank"
            yield from self._translate_window(window, settings, target_language, batch, ranks)
            stop_if_preempted(ranks.device)
            size = min(2 * size, _WINDOW_BATCHES * batch)

    def _translate_window(
        self,
        window: list[EncodedPiece],
        generation: GenerationConfig,
        language: str,
        batch: int,
        ranks: Ranks,
    ) -> Iterator[TranslationOutcome]:
        """Translate pieces in batches of similar length, distributed over the ranks; yield them in order."""
        readable = [place for place, piece in enumerate(window) if piece.problem is None]
        readable.sort(key=lambda place: len(window[place].characters))
        batches = [readable[start : start + batch] for start in range(0, len(readable), batch)]
        translations: list[Translation | None] = [None] * len(window)
        own_batches = batches[ranks.rank :: ranks.world]
        for places in own_batches:
            results = self._translate_batch([window[place] for place in places], generation, language)
            for place, result in zip(places, results, strict=True):
                translations[place] = result
        if self.partitioned and len(own_batches) < math.ceil(len(batches) / ranks.world):
            # The other ranks gather this rank's part of the language model for one more batch.
            self._translate_batch([window[readable[0]]], generation, language)
        if readable:
            translations = _merge_over_ranks(translations, ranks)
        for piece, translation in zip(window, translations, strict=True):
            yield TranslationOutcome(piece.video, piece.name, translation, piece.problem)

    @torch.inference_mode()
    def _translate_batch(
        self, pieces: list[EncodedPiece], generation: GenerationConfig, language: str
    ) -> list[Translation]:
        begin = time.perf_counter()
        device = next(self.model.parameters()).device
        results = self.model.generate(_collate_pieces(pieces, language).to(device), generation)
        share_s = (time.perf_counter() - begin) / len(pieces)
        return [
            Translation(
                text=result.text,
                score=result.candidates[0].score,
                characters=tuple(result.characters),
                words=tuple(result.words),
                word_times=compute_word_times(result.slots, len(result.words), piece.bounds_s),
                candidates=result.candidates,
                start_s=piece.start_s,
                end_s=piece.end_s,
                frames=piece.frames,
                frames_read=piece.frames_read,
                seconds=piece.seconds + share_s,
            )
            for piece, result in zip(pieces, results, strict=True)
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
        run: the run folder or exported folder.
        llm: folder of the language model that the run was trained with, if it is in another place here.
        device: device to compute on; by default the first GPU, or the CPU if there is none.
        deepspeed: ``zero3`` partitions the language model over the ranks that torchrun or Slurm started, each
            with its own device, for a language model that does not fit on a single one. All ranks must then
            make the same calls.

    Raises:
        UsageError: The folder is neither a run of stage 3 nor an export, or it is of another version, it has
            no complete checkpoint, the language model or the device is missing, or the DeepSpeed file does
            not partition the model.
    """
    run = Path(run)
    config = load_config(run, FinetuneConfig)
    warn_if_no_frame_rate(config.data)
    if deepspeed is not None:
        if device is not None:
            raise UsageError(
                f"the device {device} is given for a model that {deepspeed} partitions",
                where="device",
                remedy="leave it out: each rank has its own device",
            )
        return Translator(load_sign_llm(run, zero_file=deepspeed, llm=llm), config, partitioned=True)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_sign_llm(run, llm=llm)
    try:
        return Translator(model.to(chosen), config)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the model cannot be moved to {chosen}: {reason}",
            where="device",
            remedy="give cpu, cuda or cuda:N",
        ) from error


def _collate_pieces(pieces: Sequence[EncodedPiece], language: str) -> Batch:
    """Return a batch of characters; without a codebook, of feature vectors in single precision."""
    sequences = [np.array(piece.characters) for piece in pieces]
    items = [
        LoadedSample(
            id=piece.name,
            text="",
            language=language,
            characters=sequence.astype(np.float32) if sequence.dtype.kind == "f" else sequence,
        )
        for piece, sequence in zip(pieces, sequences, strict=True)
    ]
    positions = np.arange(len(items))
    return collate(items, is_real=[True] * len(items), positions=positions, epoch=0, seed=0)


def _require_translation(outcome: TranslationOutcome) -> Translation:
    """Return the translation, or raise the problem of a video that cannot be read as a ``UsageError``."""
    if outcome.problem is not None:
        what, where, remedy = outcome.problem
        raise UsageError(what, where=where, remedy=remedy)
    assert outcome.translation is not None
    return outcome.translation


def _merge_over_ranks(own: list[T | None], ranks: Ranks) -> list[T | None]:
    """Return a list whose entries are each known to one rank only (collective).

    Raises:
        RunFailedError: The ranks have lists of different lengths, because they cut a recording differently.
    """
    parts = gather_objects(own, ranks)
    if len({len(part) for part in parts}) > 1:
        raise RunFailedError(
            "the ranks cut the recordings into different pieces: is every file the same on each machine?"
        )
    merged: list[T | None] = []
    for entries in zip(*parts, strict=True):
        known = [entry for entry in entries if entry is not None]
        assert len(known) <= 1
        merged.append(known[0] if known else None)
    return merged
