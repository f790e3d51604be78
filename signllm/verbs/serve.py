"""``signllm serve``: a web page on this machine that translates videos."""

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
        """Serve a web page that translates videos.

        Args:
            run: run folder of stage 3, or an export of one.
            host: address to listen on; with the default only this machine can reach the page.
            port: port to listen on; 0 takes a free one.
            open: open the page in the browser.
            device: cpu, cuda or cuda:N; by default the first GPU, or the CPU without one.
            llm: folder of the language model of the training, if it is in another place on this machine.
            largest_mb: largest accepted video in megabytes.
        """
        try:
            from signllm.serving.server import serve
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "aiohttp":
                raise
            raise UsageError(
                "aiohttp is not installed", where="signllm serve", remedy="pip install 'signllm[serve]'"
            ) from None
        from signllm.inference.translate import load

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
    "serve a web page that translates uploaded videos and the camera",
    "signllm serve --run runs/finetune",
    _serve,
)
