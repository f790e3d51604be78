"""The page of ``signllm serve``, made with Gradio: a video, settings, and below them the translation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from signllm.errors import UsageError
from signllm.languages import LANGUAGES
from signllm.reporting.pages import timeline_style
from signllm.serving.pieces import Piece, Thumbnails, build_piece, pieces_style, render_pieces
from signllm.serving.service import CUTS, MOST_CANDIDATES, Service, TranslationRequest

THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
"""Gradio's theme with the fonts of the visitor's system: its own ones would be loaded from Google."""
CUT_NAMES = ("read completely", "cut where signing pauses", "cut into windows")
SETTINGS = ("language", "candidates", "cut", "seconds")
"""Fields of :class:`TranslationRequest` that the page sets."""
MOST_EXAMPLES = 12
DELETED_AFTER_S = 3600
"""Age at which the video of a page that is still open is deleted."""


class Uploads:
    """The videos that each open page has translated, which are deleted when it is closed.

    Args:
        folder: folder to which Gradio writes uploaded videos.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.by_page: dict[str, set[Path]] = {}

    def add(self, session: str, video: dict[str, Any]) -> Path:
        """Return the path of an uploaded video, and delete it when the page of the session is closed.

        Raises:
            UsageError: the file is not in the folder of uploads.
        """
        path = Path(video["path"]).resolve()
        if not path.is_relative_to(self.folder):
            raise UsageError("this is not an uploaded video", remedy="choose a video")
        self.by_page.setdefault(session, set()).add(path)
        return path

    def delete(self, session: str, kept: set[Path]) -> None:
        """Delete the videos of a session, except those of other sessions (equal files share a path)."""
        own = self.by_page.pop(session, set())
        for path in own - kept - set().union(*self.by_page.values()):
            path.unlink(missing_ok=True)


def build_page(
    service: Service, name: str, language: str, examples: Sequence[Path], folder: Path
) -> gr.Blocks:
    """Return the page.

    Args:
        service: the service that translates.
        name: name of the model.
        language: language of training.
        examples: videos that a visitor may choose.
        folder: folder to which Gradio writes uploaded videos.
    """
    uploads = Uploads(folder)

    async def translate(
        request: gr.Request, video: dict[str, Any] | None, *settings: Any
    ) -> AsyncIterator[str]:
        if video is None:
            yield render_pieces("")
            return
        async with aclosing(_translate(service, uploads, video, settings, request)) as results:
            async for result in results:
                yield result

    def delete_uploads(request: gr.Request) -> None:
        kept_paths = set().union(*(getattr(block, "keep_in_cache", ()) for block in page.blocks.values()))
        uploads.delete(str(request.session_hash), {Path(path).resolve() for path in kept_paths})  # examples

    with gr.Blocks(title="SignLLM", analytics_enabled=False, delete_cache=(60, DELETED_AFTER_S)) as page:
        gr.Markdown(
            f"# Sign language to text\nModel **{name}**. It runs on the machine that serves this page. "
            "Videos are deleted when the page is closed, at the latest after an hour."
        )
        video = gr.Video(label="Video", sources=["upload", "webcam"], include_audio=False, height=360)
        settings = _add_settings(language)
        button = gr.Button("Translate", variant="primary")
        result = gr.HTML(render_pieces(""), label="Translation")
        if examples:
            gr.Examples(
                [[str(path)] for path in examples],
                [video],
                example_labels=[path.stem for path in examples],
                examples_per_page=MOST_EXAMPLES,
            )
        gr.on(
            [video.change, button.click],
            translate,
            [video, *settings],
            result,
            show_progress="hidden",
            trigger_mode="always_last",
            preprocess=False,  # Gradio would convert the video with the program ffmpeg
            concurrency_limit=None,  # the service translates one video after another, and says who waits
            api_visibility="private",  # scripts use POST /translate
        )
        page.unload(delete_uploads)
    return page


def _add_settings(language: str) -> list[gr.components.Component]:
    """Add the settings to the page, in the order of the names in :data:`SETTINGS`."""
    languages = [language, *(item.name for item in LANGUAGES if item.name != language)]
    cuts = list(zip(CUT_NAMES, CUTS, strict=True))
    with gr.Accordion("Settings", open=False), gr.Row():
        return [
            gr.Dropdown(languages, value=language, label="Language of the text", allow_custom_value=True),
            gr.Slider(1, MOST_CANDIDATES, value=3, step=1, label="Alternatives"),
            gr.Dropdown(cuts, value=CUTS[0], label="A long recording is"),
            gr.Number(10, minimum=0.1, label="Seconds of a window"),
        ]


async def _translate(
    service: Service, uploads: Uploads, upload: dict[str, Any], settings: Sequence[Any], request: gr.Request
) -> AsyncGenerator[str]:
    """Yield what the page shows, from the request to the last piece."""
    pieces: list[Piece] = []
    yield render_pieces("Translating …")
    try:
        video = uploads.add(str(request.session_hash), upload)
        query = zip(SETTINGS, ("" if value is None else str(value) for value in settings), strict=True)
        translation_request = TranslationRequest.from_query(dict(query))
    except UsageError as error:
        yield render_pieces(_describe(error.what, error.remedy), is_error=True)
        return
    is_cut, thumbnails = translation_request.cut != "whole", Thumbnails(video)
    words = service.translator.model.words
    async with aclosing(service.translate(video, "the video", translation_request)) as lines:
        async for line in lines:
            if "error" in line:
                yield render_pieces(_describe(**line["error"]), pieces, is_error=True)
                return
            if "waiting" in line:
                yield render_pieces(f"Waiting: {line['waiting']} before this one.")
            elif "text" in line:
                pieces.append(await asyncio.to_thread(build_piece, line, words, thumbnails, is_cut=is_cut))
                yield render_pieces("Translating …", pieces)
    yield render_pieces("Done." if len(pieces) == 1 else f"Done: {len(pieces)} pieces.", pieces)


def _describe(what: str, remedy: Any, where: str = "") -> str:
    """Return an error as text: what went wrong, and what to try."""
    return f"{what}\nTry: {remedy}" if remedy else what


def page_options(largest_mb: int, public_url: str | None) -> dict[str, Any]:
    """Return the options with which :func:`build_page`'s result is mounted into a server.

    No request goes to another host: analytics, fonts of others, Gradio's links and its history of runs are
    switched off.
    """
    return {
        "root_path": public_url,
        "max_file_size": largest_mb * 10**6,
        "theme": THEME,
        "css": timeline_style() + pieces_style(),
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "app_kwargs": {"docs_url": None, "redoc_url": None, "openapi_url": None},
    }
