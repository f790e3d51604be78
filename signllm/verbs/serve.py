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
        public_url: str | None = None,
        ssl_certfile: Path | None = None,
        ssl_keyfile: Path | None = None,
        examples: Path | None = None,
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
            public_url: address at which browsers open the page behind a reverse proxy, such as
                https://example.org/signs.
            ssl_certfile: certificate in a PEM file, to serve https without a proxy; browsers give the camera
                of another machine to https only.
            ssl_keyfile: private key of the certificate, if it is in another file.
            examples: video file, or folder of videos, that visitors may choose; of a folder, the first
                twelve.
            open: open the page in the browser.
            device: cpu, cuda or cuda:N; by default the first GPU, or the CPU without one.
            llm: folder of the language model of the training, if it is in another place on this machine.
            largest_mb: largest accepted video in megabytes.
        """
        try:
            from signllm.serving.server import ServeConfig, serve
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in ("gradio", "fastapi", "uvicorn"):
                raise
            raise UsageError(
                f"{missing} is not installed", where="signllm serve", remedy="pip install 'signllm[serve]'"
            ) from None
        from signllm.inference.translate import load
        from signllm.inference.video_input import collect_video_inputs
        from signllm.serving.page import MOST_EXAMPLES

        def ready(address: str) -> None:
            print(f"ready at {address} (Ctrl-C ends it)", flush=True)
            if open:
                import webbrowser

                webbrowser.open(address)

        if public_url is not None and not public_url.startswith(("http://", "https://")):
            raise UsageError(
                f"{public_url!r} is not an address",
                where="--public-url",
                remedy="give it as browsers show it, https://example.org/signs for instance",
            )
        videos = collect_video_inputs([str(examples)], bytes)[:MOST_EXAMPLES] if examples else []
        config = ServeConfig(
            host=host,
            port=port,
            public_url=public_url and public_url.rstrip("/"),
            certificate=ssl_certfile,
            key=ssl_keyfile,
            largest_mb=largest_mb,
            examples=[Path(video.name) for video in videos],
        )
        serve(load(run, device=device, llm=llm), run.resolve().name, config, ready=ready)

    return prepare_job(serve, arguments, verb="serve", about=SERVE)


SERVE = Verb(
    "serve a web page that translates uploaded videos and the camera",
    "signllm serve --run runs/finetune",
    _serve,
)
