"""``signllm serve``: a page on this machine that translates videos."""

from pathlib import Path

from signllm.command import Job, Verb, prepare_job
from signllm.errors import UsageError


def _serve(arguments: list[str]) -> Job:
    def serve(
        *,
        run: Path,
        host: str = "127.0.0.1",
        port: int = 8000,
        open: bool = False,
        device: str | None = None,
        llm: str | None = None,
        largest_mb: int = 500,
    ) -> None:
        """Serve.

        Args:
            run: the run folder of stage 3, or an export of one.
            host: address to listen at; the default is reached from this machine only.
            port: of it; 0 takes a free one.
            open: open the page in the browser.
            device: cpu, cuda or cuda:N; default the first GPU if there is one.
            llm: folder of the language model that it was trained with, if it lies elsewhere here.
            largest_mb: largest video that is taken, in megabytes.
        """
        try:
            from signllm.serving.server import serve
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "aiohttp":
                raise
            raise UsageError(
                "aiohttp is not installed", where="signllm serve", remedy="pip install 'signllm[serve]'"
            ) from None
        from signllm.evaluation.translate import load

        def ready(address: str) -> None:
            print(f"ready at {address} (Ctrl-C ends it)", flush=True)
            if open:
                import webbrowser

                webbrowser.open(address)

        name = run.resolve().name
        serve(
            load(run, device=device, llm=llm), name, host=host, port=port, largest_mb=largest_mb, ready=ready
        )

    return prepare_job(serve, arguments, verb="serve", about=SERVE)


SERVE = Verb(
    "a page on this machine: drop a video or use the camera, read its translation",
    "signllm serve --run runs/finetune",
    _serve,
)
