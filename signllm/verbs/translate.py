"""``signllm translate``: text for any video, for folders and lists of videos, and for long recordings."""

import functools
import itertools
import json as json_format
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from signllm.command import Job, Verb, prepare_job, run_on_ranks
from signllm.errors import RunFailedError, UsageError

if TYPE_CHECKING:
    from signllm.data.video.recording_pieces import CutRule, Pauses
    from signllm.distributed.ranks import Ranks
    from signllm.inference.translate import TranslationOutcome, Translator


def _translate(arguments: list[str]) -> Job:
    import tyro

    from signllm.data.video.recording_pieces import Pauses
    from signllm.models.language_model.generation import GenerationConfig

    settings, usual = Annotated[GenerationConfig, tyro.conf.arg(name="")], _generation(arguments)
    places = Annotated[tuple[str, ...], tyro.conf.arg(metavar="VIDEO|FOLDER|-")]

    def translate(
        videos: places,
        /,
        *,
        run: Path,
        json: bool = False,
        out: Path | None = None,
        batch: int = 8,
        ranks: int = 1,
        device: str | None = None,
        llm: str | None = None,
        deepspeed: str | None = None,
        windows: float | None = None,
        overlap: float = 0.0,
        pauses: bool = False,
        pause: Pauses = Pauses(),  # noqa: B008  frozen
        fps: float | None = None,
        generation: settings = usual,
    ) -> None:
        """Translate videos.

        Args:
            videos: video files; folders with the numbered pictures of one video, or with videos at any depth,
                taken in the order of their names; or - for standard input: a list of files and folders, one
                per line, or the bytes of one video.
            run: run folder of stage 3, or an export of one, whose decoding settings are the defaults.
            json: print one line of JSON per video or piece, with characters, words and their times, scores
                and candidates. Otherwise a line has tab-separated fields: name, begin and end of a piece,
                score if there are several candidates, and text.
            out: file for the lines, written atomically; by default standard output.
            batch: videos or pieces that a rank translates at a time.
            ranks: processes on this machine that share the work.
            device: cpu, cuda or cuda:N; by default the first GPU, or one for each rank, or the CPU without
                one.
            llm: folder of the language model of the training, if it is in another place on this machine.
            deepspeed: zero3 partitions the language model over the ranks, if it fits on none of them.
            windows: cut every recording into windows of this number of seconds.
            overlap: seconds that a window shares with the one before.
            pauses: cut every recording at pauses of signing.
            pause: what counts as a pause.
            fps: frames per second of folders of pictures; by default that of the videos of the training.
        """
        cut = _cut(windows, overlap, pause if pauses else None)

        def work() -> None:
            group = _ranks(device, deepspeed)
            _work(
                videos,
                functools.partial(_translator, run, llm, device, deepspeed, group),
                generation,
                cut,
                group,
                json=json,
                out=out,
                batch=batch,
                fps=fps,
            )

        run_on_ranks("translate", arguments, ranks, work)

    return prepare_job(translate, arguments, verb="translate", about=TRANSLATE)


def _generation(arguments: Sequence[str]) -> Any:
    """Return the decoding settings of the run that the arguments name, as defaults of the options."""
    from signllm.config import FinetuneConfig, load_config
    from signllm.models.language_model.generation import GenerationConfig

    folders = [value for name, value in itertools.pairwise(arguments) if name == "--run"]
    folders += [value.removeprefix("--run=") for value in arguments if value.startswith("--run=")]
    try:
        return load_config(Path(folders[0]), FinetuneConfig).generation if folders else GenerationConfig()
    except (UsageError, OSError):  # reported when the run is loaded
        return GenerationConfig()


def _cut(windows: float | None, overlap: float, pauses: "Pauses | None") -> "CutRule | None":
    from signllm.data.video.recording_pieces import Windows

    if windows is not None and pauses is not None:
        raise UsageError("--windows and --pauses exclude each other", remedy="give one of them")
    if windows is None and overlap:
        raise UsageError(f"--overlap {overlap:g} needs windows", remedy="give --windows SECONDS too")
    return pauses if windows is None else Windows(seconds=windows, overlap=overlap)


def _work(
    names: tuple[str, ...],
    load: "Callable[[], Translator]",
    generation: Any,
    cut: "CutRule | None",
    ranks: "Ranks",
    *,
    json: bool,
    out: Path | None,
    batch: int,
    fps: float | None,
) -> None:
    """Translate on this rank; rank 0 writes the lines (all ranks).

    Raises:
        UsageError: there is no video, or the only one cannot be read.
        RunFailedError: some of several videos cannot be read; the others are translated.
    """
    from signllm.distributed.agreement import run_on_rank_zero
    from signllm.inference.video_input import collect_video_inputs
    from signllm.progress import progress

    videos = run_on_rank_zero(lambda: collect_video_inputs(names, sys.stdin.buffer.read, fps), ranks)
    translator = load()
    is_first = ranks.rank == 0
    shows_bar = is_first and len(videos) > 1 and (out is not None or not sys.stdout.isatty())
    unread: dict[int, tuple[str, str, str]] = {}
    done = 0
    with _lines_to(out if is_first else Path(os.devnull)) as write:
        with progress(len(videos), "translating", unit="videos", enabled=shows_bar) as bar:
            for outcome in translator.stream(
                videos, cut=cut, generation=generation, batch=batch, ranks=ranks
            ):
                if outcome.problem is not None:
                    unread[outcome.video] = outcome.problem
                    if is_first and len(videos) > 1:
                        print(f"signllm: {outcome.name}: {outcome.problem[0]}", file=sys.stderr, flush=True)
                elif is_first:
                    write(_line(outcome, json=json, has_times=cut is not None, several=generation.n_best > 1))
                bar.advance(outcome.video - done)
                done = outcome.video
            bar.advance(len(videos) - done)
    _report(unread, len(videos))


def _report(unread: dict[int, tuple[str, str, str]], videos: int) -> None:
    if not unread:
        return
    what, where, remedy = next(iter(unread.values()))
    if videos == 1:
        raise UsageError(what, where=where, remedy=remedy)
    raise RunFailedError(
        f"{len(unread)} of {videos} videos could not be translated\n"
        f"  where:  {where}: {what}\n  remedy: {remedy}"
    )


def _translator(
    run: Path, llm: str | None, device: str | None, deepspeed: str | None, ranks: "Ranks"
) -> "Translator":
    """Load the run (all ranks)."""
    from signllm.distributed.agreement import fail_on_all_ranks
    from signllm.inference.translate import load

    if deepspeed is not None:  # loading is a collective, so all ranks raise the same errors
        return load(run, llm=llm, device=None if device in ("cpu", "cuda") else device, deepspeed=deepspeed)
    with fail_on_all_ranks(ranks):
        return load(run, llm=llm, device=device if device not in (None, "cuda") else ranks.device)


def _ranks(device: str | None, deepspeed: str | None) -> "Ranks":
    import torch

    from signllm.distributed.ranks import Ranks, start_distributed

    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    if deepspeed is not None or os.environ.get("WORLD_SIZE", "1") != "1":
        return start_distributed()
    usual = "cuda" if device is None and torch.cuda.is_available() else device or "cpu"
    return Ranks(device=torch.device(usual) if usual in ("cpu", "cuda") else torch.device("cpu"))


@contextmanager
def _lines_to(out: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes a line: at once to standard output, or atomically to a file."""
    from signllm.atomic_files import atomic_file

    if out is None or out == Path(os.devnull):
        stream = sys.stdout  # a progress bar replaces sys.stdout
        yield lambda line: print(line, file=stream, flush=True) if out is None else None
        return
    with atomic_file(out) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        yield lambda line: print(line, file=file)


def _line(outcome: "TranslationOutcome", *, json: bool, has_times: bool, several: bool) -> str:
    """Return the line, or the lines, of a translation."""
    from signllm.validation import to_plain

    translation = outcome.translation
    assert translation is not None
    if json:
        return json_format.dumps({"video": outcome.name} | to_plain(translation), ensure_ascii=False)
    times = [f"{translation.start_s:.2f}", f"{translation.end_s:.2f}"] if has_times else []
    lines = []
    for candidate in translation.candidates:
        score = [f"{candidate.score:.3f}"] if several else []
        lines.append("\t".join([outcome.name, *times, *score, " ".join(candidate.text.split())]))
    return "\n".join(lines)


TRANSLATE = Verb(
    "translate video files, folders of videos or long recordings",
    "signllm translate --run runs/finetune video.mp4",
    _translate,
)
