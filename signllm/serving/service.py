"""One model behind a page: requests wait for each other, and every answer says where it stands.

An answer is lines of JSON, each sent as soon as it is known: ``{"waiting": 2}`` while others are before it,
a line with the fields of ``signllm translate --json`` and ``spellings`` for each piece of the video, then
``{"done": true}``; or ``{"error": {"what", "where", "remedy"}}``. The model runs in a thread of its own, so
that the page stays alive; who closes the page frees it after the current batch.
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

from signllm.data.recording_pieces import CutRule, Pauses, Windows
from signllm.errors import UsageError
from signllm.evaluation.translate import TranslationOutcome, Translator
from signllm.evaluation.video_input import VideoInput
from signllm.plain import to_plain

Line = dict[str, Any]
Tell = Callable[[Line | None], None]
MOST_CANDIDATES = 8
CUTS = ("whole", "pauses", "windows")
AGAIN_S = 0.5
"""Who waits is told its place this often, which also shows whether it is still there."""


@dataclass(frozen=True, kw_only=True)
class TranslationRequest:
    """What is asked for beside the video.

    Attributes:
        language: of the text; None: that of training.
        candidates: how many texts, best first.
        cut: ``whole``, ``pauses`` or ``windows``.
        seconds: of a window.
    """

    language: str | None = None
    candidates: int = 1
    cut: str = "whole"
    seconds: float = 10.0

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> TranslationRequest:
        """Read a request's query.

        Raises:
            UsageError: an unknown name, or a value that cannot be.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(query.keys() - known):
            raise UsageError(
                f"there is no setting {unknown[0]!r}", where="query", remedy=f"use {', '.join(sorted(known))}"
            )
        try:
            wish = cls(
                language=query.get("language", "").strip() or None,
                candidates=int(query.get("candidates", "1")),
                cut=query.get("cut", "whole"),
                seconds=float(query.get("seconds", "10")),
            )
        except ValueError as error:
            raise UsageError(str(error), where="query", remedy="give numbers") from None
        if not 1 <= wish.candidates <= MOST_CANDIDATES:
            raise UsageError(
                f"{wish.candidates} candidates", where="query", remedy=f"give 1 to {MOST_CANDIDATES}"
            )
        if wish.cut not in CUTS:
            raise UsageError(f"cut is {wish.cut!r}", where="query", remedy=f"give one of {', '.join(CUTS)}")
        return wish

    @property
    def how(self) -> CutRule | None:
        """How the video is cut.

        Raises:
            UsageError: windows that cannot be.
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
        self.ends = threading.Event()
        self._queue: list[object] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def translate(self, video: Path, name: str, wish: TranslationRequest) -> AsyncGenerator[Line]:
        """Yield the lines of an answer; to be closed by who reads it.

        Args:
            video: a file that is there until the last line.
            name: of it, for messages.
            wish: what is asked for.
        """
        ticket = object()
        self._queue.append(ticket)
        try:
            while before := self._queue.index(ticket):
                yield {"waiting": before}
                await asyncio.sleep(AGAIN_S)
            async with aclosing(self._lines(video, name, wish)) as lines:
                async for line in lines:
                    yield line
        finally:
            self._queue.remove(ticket)

    async def _lines(self, video: Path, name: str, wish: TranslationRequest) -> AsyncGenerator[Line]:
        lines: asyncio.Queue[Line | None] = asyncio.Queue()
        loop, left = asyncio.get_running_loop(), threading.Event()

        def tell(line: Line | None) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        work = loop.run_in_executor(self._thread, self._work, video, name, wish, tell, left)
        try:
            while (line := await lines.get()) is not None:
                yield line
        finally:
            left.set()
            await asyncio.shield(work)

    def _work(
        self,
        video: Path,
        name: str,
        wish: TranslationRequest,
        tell: Callable[[Line | None], None],
        left: threading.Event,
    ) -> None:
        """Translate in the model's thread; every end is told."""
        try:
            for one in self.translator.stream(
                [VideoInput(name, video)],
                cut=wish.how,
                language=wish.language,
                generation=self._decoding(wish),
            ):
                tell(self._told(one))
                if one.problem is not None or left.is_set() or self.ends.is_set():
                    return
            tell({"done": True})
        except UsageError as error:
            tell({"error": {"what": error.what, "where": str(error.where), "remedy": error.remedy}})
        except Exception as error:
            tell({"error": {"what": f"{type(error).__name__}: {error}", "where": name, "remedy": ""}})
            raise
        finally:
            tell(None)

    def _decoding(self, wish: TranslationRequest) -> Any:
        """Return the run's decoding, with as many candidates as are asked for."""
        usual = self.translator.config.generation
        if wish.candidates == 1:
            return usual
        beams = usual.beams if usual.samples else max(usual.beams, wish.candidates)
        return dataclasses.replace(usual, beams=beams, n_best=wish.candidates)

    def _told(self, one: TranslationOutcome) -> Line:
        if one.problem is not None:
            what, where, remedy = one.problem
            return {"error": {"what": what, "where": where, "remedy": remedy}}
        assert one.translation is not None
        words = self.translator.model.words
        return to_plain(one.translation) | {
            "spellings": [list(words.spell(w)) for w in one.translation.words]
        }
