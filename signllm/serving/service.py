"""The translation service of a server: one model that processes one request after another.

A response consists of lines of JSON, each sent as soon as it is available: ``{"waiting": 2}`` while two
requests are before this one, a line with the fields of ``signllm translate --json`` and ``spellings`` for
each piece of the video, then ``{"done": true}``; or ``{"error": {"what", "where", "remedy"}}``. The model
runs in its own thread, so that the server stays responsive. Closing the page stops the translation after the
current batch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signllm.data.video.recording_pieces import CutRule, Pauses, Windows
from signllm.errors import UsageError
from signllm.inference.translate import TranslationOutcome, Translator
from signllm.inference.video_input import VideoInput
from signllm.validation import to_plain

Line = dict[str, Any]
Send = Callable[[Line | None], None]
"""Function that sends one line of a response; None ends it."""
MOST_CANDIDATES = 8
CUTS = ("whole", "pauses", "windows")
POSITION_INTERVAL_S = 0.5
"""Interval in seconds at which a waiting client gets its position; it also detects disconnected clients."""


@dataclass(frozen=True, kw_only=True)
class TranslationRequest:
    """The settings of a request for the translation of a video.

    Attributes:
        language: language of the text; None is that of training.
        candidates: number of alternative texts, best first.
        cut: how a recording is cut: ``whole``, ``pauses`` or ``windows``.
        seconds: length of a window in seconds.
    """

    language: str | None = None
    candidates: int = 1
    cut: str = "whole"
    seconds: float = 10.0

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> TranslationRequest:
        """Return the settings in the query of a request.

        Raises:
            UsageError: a name is unknown, or a value is not valid.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(query.keys() - known):
            raise UsageError(
                f"there is no setting {unknown[0]!r}", where="query", remedy=f"use {', '.join(sorted(known))}"
            )
        try:
            settings = cls(
                language=query.get("language", "").strip() or None,
                candidates=int(query.get("candidates", "1")),
                cut=query.get("cut", "whole"),
                seconds=float(query.get("seconds", "10")),
            )
        except ValueError as error:
            raise UsageError(str(error), where="query", remedy="give numbers") from None
        if not 1 <= settings.candidates <= MOST_CANDIDATES:
            raise UsageError(
                f"{settings.candidates} candidates are not possible",
                where="query",
                remedy=f"give 1 to {MOST_CANDIDATES}",
            )
        if settings.cut not in CUTS:
            raise UsageError(
                f"cut is {settings.cut!r}", where="query", remedy=f"give one of {', '.join(CUTS)}"
            )
        return settings

    @property
    def cut_rule(self) -> CutRule | None:
        """Rule by which the video is cut, None if it is not cut.

        Raises:
            UsageError: the length of the windows is not valid.
        """
        if self.cut == "windows":
            return Windows(seconds=self.seconds)
        return Pauses() if self.cut == "pauses" else None


class Service:
    """Translates one video at a time.

    Args:
        translator: the loaded model.
    """

    def __init__(self, translator: Translator) -> None:
        self.translator = translator
        self.stop = threading.Event()
        self._queue: list[object] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def translate(self, video: Path, name: str, settings: TranslationRequest) -> AsyncGenerator[Line]:
        """Yield the lines of a response; the caller must close the generator.

        Args:
            video: path of the video, which must exist until the last line.
            name: name of the video, for messages.
            settings: settings of the request.
        """
        ticket = object()
        self._queue.append(ticket)
        try:
            while before := self._queue.index(ticket):
                yield {"waiting": before}
                await asyncio.sleep(POSITION_INTERVAL_S)
            async with aclosing(self._lines(video, name, settings)) as lines:
                async for line in lines:
                    yield line
        finally:
            self._queue.remove(ticket)

    async def _lines(self, video: Path, name: str, settings: TranslationRequest) -> AsyncGenerator[Line]:
        """Yield the lines that the model's thread produces; closing the generator stops the thread's work."""
        lines: asyncio.Queue[Line | None] = asyncio.Queue()
        loop, disconnected = asyncio.get_running_loop(), threading.Event()

        def send(line: Line | None) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        work = loop.run_in_executor(self._thread, self._work, video, name, settings, send, disconnected)
        try:
            while (line := await lines.get()) is not None:
                yield line
        finally:
            disconnected.set()
            await asyncio.shield(work)

    def _work(
        self,
        video: Path,
        name: str,
        settings: TranslationRequest,
        send: Send,
        disconnected: threading.Event,
    ) -> None:
        """Translate in the thread of the model; every response ends with a line that says how it ended."""
        try:
            for outcome in self.translator.stream(
                [VideoInput(name, video)],
                cut=settings.cut_rule,
                language=settings.language,
                generation=self._generation_config(settings),
            ):
                send(self._format_outcome(outcome))
                if outcome.problem is not None or disconnected.is_set() or self.stop.is_set():
                    return
            send({"done": True})
        except UsageError as error:
            send({"error": {"what": error.what, "where": str(error.where), "remedy": error.remedy}})
        except Exception as error:
            send({"error": {"what": f"{type(error).__name__}: {error}", "where": name, "remedy": ""}})
            raise
        finally:
            send(None)

    def _generation_config(self, settings: TranslationRequest) -> Any:
        """Return the run's configuration of text generation with the requested number of candidates."""
        default = self.translator.config.generation
        if settings.candidates == 1:
            return default
        beams = default.beams if default.samples else max(default.beams, settings.candidates)
        return dataclasses.replace(default, beams=beams, n_best=settings.candidates)

    def _format_outcome(self, outcome: TranslationOutcome) -> Line:
        """Return the line of a translated piece, or of its problem."""
        if outcome.problem is not None:
            what, where, remedy = outcome.problem
            return {"error": {"what": what, "where": where, "remedy": remedy}}
        assert outcome.translation is not None
        words = self.translator.model.words
        return to_plain(outcome.translation) | {
            "spellings": [list(words.spell(word)) for word in outcome.translation.words]
        }
