"""``signllm plan``: the request, all setups for it, the fastest one and its command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from signllm.cluster.planning.command_line import format_command, launch_arguments
from signllm.cluster.planning.gpus import find_gpu
from signllm.cluster.planning.known_models import configuration_folder
from signllm.cluster.planning.roofline import Machine
from signllm.cluster.planning.setups import (
    FILES,
    HEADROOM,
    PlannedSetup,
    Project,
    fastest_setup,
    open_project,
    plan_setups,
)
from signllm.cluster.planning.translation_time import TranslationTime, plan_translation
from signllm.config import FinetuneConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import RunFailedError
from signllm.models.vq_sign.vq_sign import VQSignConfig
from signllm.stages.initial_run import with_encoder_from
from signllm.training.startup import format_bytes, format_count

GIB = 2**30
NOT_MEASURED = (
    "Memory is computed from the model's code without weights; tools/check_plan checks it by measuring.",
    "Time is a roofline model, not measured on a GPU: operators, links and launches at the shares above;",
    "nothing overlaps. Waiting for data is not included.",
)
TABLE_MODELS = ("llama-7b", "llama-13b", "llama-33b", "llama-2-70b")
TABLE_GPUS = ("a100-80", "h100", "h200")


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What the user request for.

    Attributes:
        recipe: name of the recipe.
        default: the recipe's configuration of stage 3.
        config: the same with the user's changes.
        vq_sign: the recipe's encoder, used without ``init``.
        llm: language model: a folder, a name on the hub or a known name; None takes the recipe's.
        frames: frames of a video; None takes the maximum that training keeps of a long video.
        text_tokens: tokens of a reference; None takes the maximum of the recipe.
        init: run folder of stages 1 and 2, or None.
    """

    recipe: str
    default: FinetuneConfig
    config: FinetuneConfig
    vq_sign: VQSignConfig
    llm: str | None = None
    frames: int | None = None
    text_tokens: int | None = None
    init: Path | None = None

    @property
    def model(self) -> str:
        """The language model as the user named it."""
        return self.llm or self.config.sign_llm.language_model.path

    def project(self, folder: str) -> Project:
        """Return what is to be trained, with the language model whose configuration is in ``folder``.

        Raises:
            UsageError: ``init`` is not a run that fits.
        """
        config = replace(self.config, sign_llm=replace(self.config.sign_llm, vq_sign=self.vq_sign))
        words = None
        if self.init is not None:
            config = with_encoder_from(self.init, config)
            if (self.init / "words.json").is_file():
                words = WordCodebook.load(self.init)
        most = self.config.data.max_frames
        frames = most if self.frames is None else min(most, self.frames)
        tokens = self.text_tokens
        if tokens is None:
            tokens = self.config.sign_llm.language_model.max_text_tokens + 1
        return open_project(config, folder, frames=frames, text_tokens=tokens, words=words)


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """All setups in the order of ``SETUPS``, the fastest one that fits, and the time of a translation."""

    HEADERS: ClassVar = (
        *("GiB of a rank", "weights", "grads", "optim", "activations", "bucket", "gather", "peak", "fits"),
        *("videos", "compute", "network", "step s", "sent"),
    )

    request: PlanRequest
    machine: Machine
    project: Project
    setups: list[PlannedSetup]
    best: PlannedSetup | None
    translation: TranslationTime

    def command(self) -> list[str]:
        """Return the arguments of the command line that launches the fastest setup; empty if nothing fits."""
        if self.best is None:
            return []
        return launch_arguments(
            self.request.recipe,
            default=self.request.default,
            chosen=self.best.config,
            machine=self.machine,
            llm=self.request.model,
            init=str(self.request.init or "runs/pretrain"),
            data="shards",
            run="runs/finetune",
        )

    def head(self) -> Iterator[str]:
        """Yield the request as lines."""
        machine, gpu, training = self.machine, self.machine.gpu, self.project.config.training
        weights = self.project.weights(self.setups[0].config)
        sizes = [sum(w.elements for w in weights if w.trained is trained) for trained in (False, True)]
        yield f"{self.request.model} with the recipe {self.request.recipe}"
        yield f"  frozen {format_count(sizes[0])}, trained {format_count(sizes[1])} parameters"
        yield (
            f"  {machine.nodes} x {machine.gpus} {gpu.name}: {gpu.memory_gib:g} GiB, {HEADROOM:.0%} left"
            f" free; {gpu.peak / 1e12:g} TFLOP/s in 16 bits, of which {machine.compute_share:g} is reached"
        )
        between = f", {machine.network:g} GB/s between nodes" if machine.nodes > 1 else ""
        yield (
            f"  memory {gpu.bandwidth:g} GB/s, of which {machine.memory_share:g}; {gpu.link:g} GB/s between"
            f" GPUs{between}, of which {machine.link_share:g}; {machine.launch_us:g} µs an operator"
        )
        what = "videos" if self.project.video else "recorded videos"
        yield (
            f"  {training.batch_size} {what} in a step over all ranks, each of {self.project.frames} frames"
            f" of {self.project.config.data.size} pixels, texts of {self.project.text_tokens} tokens"
        )

    def rows(self) -> Iterator[str]:
        """Yield the table of all setups as lines, with an arrow at the fastest."""
        cells = [list(self.HEADERS), *map(self._cells, self.setups)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for planned_setup, (name, *others) in zip([None, *self.setups], cells, strict=True):
            numbers = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
            mark = " <-" if planned_setup is not None and planned_setup is self.best else ""
            yield f"{name:<{widths[0]}}  {'  '.join(numbers)}{mark}"

    def _cells(self, planned_setup: PlannedSetup) -> list[str]:
        parts, seconds, training = planned_setup.memory, planned_setup.seconds, planned_setup.config.training
        sizes = (
            parts.weights,
            parts.gradients,
            parts.optimizer,
            parts.activations,
            parts.buckets,
            parts.gathered,
        )
        memory = [f"{size / GIB:.1f}" for size in sizes]
        if seconds is None:
            memory[3] = "-"
            return [setup_name(planned_setup), *memory, f"> {parts.peak / GIB:.1f}", "no", *["-"] * 5]
        videos = self.project.videos(planned_setup.config, self.machine.ranks)
        times = (seconds.compute, seconds.network, seconds.total)
        return [
            setup_name(planned_setup),
            *memory,
            f"{parts.peak / GIB:.1f}",
            "yes" if planned_setup.fits else "no",
            f"{videos} x {training.accumulation}",
            *(f"{value:.3f}" for value in times),
            format_bytes(round(planned_setup.sent_bytes)),
        ]

    def foot(self) -> Iterator[str]:
        """Yield explanations of the table and what follows from it, as lines."""
        yield "each part is at its own maximum, peak is the maximum of their sum; videos: per rank x"
        yield "forward passes; compute and network in seconds; recomputed: the language model's activations"
        hosts = [setup for setup in self.setups if setup.memory.host]
        if hosts:
            host = hosts[0].memory.host * self.machine.gpus / GIB
            yield f"zero3_offload takes {host:.1f} GiB of a node's CPU memory"
        if self.best is not None and self.best.seconds is not None:
            yield ""
            yield f"fastest that fits: {setup_name(self.best)}, {self.best.seconds.total:.3f} s a step"
            yield format_command(self.command())
        yield ""
        yield self._translation_line()
        yield from NOT_MEASURED

    def _translation_line(self) -> str:
        time = self.translation
        return (
            f"translate one video of {self.project.frames} frames on one GPU: encoder {_ms(time.encoder)}"
            f" + segmentation {_ms(time.segmentation)} (timed on the CPU here)\n  + prompt {_ms(time.prompt)}"
            f" + {time.tokens} tokens {_ms(time.token * time.tokens)} (bound by reading the weights)"
            f" -> encoder and segmentation {time.encoder_share:.1%}"
        )

    def require_fit(self) -> None:
        """Raise unless a setup fits.

        Raises:
            RunFailedError: none fits; the message says what the smallest one needs.
        """
        if self.best is not None:
            return
        least = min(
            self.setups,
            key=lambda planned_setup: planned_setup.memory.peak if planned_setup.seconds else float("inf"),
        )
        if least.seconds is None:
            least = min(self.setups, key=lambda planned_setup: planned_setup.memory.peak)
        limit = self.machine.gpu.memory_gib * (1 - HEADROOM)
        raise RunFailedError(
            f"nothing fits: the smallest, {setup_name(least)}, needs {least.memory.peak / GIB:.1f} GiB"
            f"{'' if least.seconds else ' and more'} of the {limit:.1f} GiB that a rank may use\n"
            "  remedy: more --gpus or --nodes, a --gpu with more memory, a smaller language model, or shorter"
            " videos (--frames; in training --data.max-frames thins them)"
        )

    def record(self) -> dict[str, Any]:
        """Return everything as JSON values, in bytes and seconds."""
        machine = dataclasses.asdict(self.machine)
        return {
            "recipe": self.request.recipe,
            "language_model": self.request.model,
            "machine": machine,
            "batch": {
                "videos": self.project.config.training.batch_size,
                "frames": self.project.frames,
                "text_tokens": self.project.text_tokens,
            },
            "ways": [self._record(setup) for setup in self.setups],
            "best": None if self.best is None else self._record(self.best),
            "command": ["signllm", *self.command()] if self.best is not None else None,
            "translation": dataclasses.asdict(self.translation)
            | {"encoder_share": self.translation.encoder_share},
            "measured": False,
        }

    def _record(self, planned_setup: PlannedSetup) -> dict[str, Any]:
        training = planned_setup.config.training
        seconds = (
            None
            if planned_setup.seconds is None
            else dataclasses.asdict(planned_setup.seconds) | {"total": planned_setup.seconds.total}
        )
        return {
            **dataclasses.asdict(planned_setup.setup),
            "precision": training.precision,
            "forward_passes": training.accumulation,
            "videos_per_rank": self.project.videos(planned_setup.config, self.machine.ranks),
            "bytes": dataclasses.asdict(planned_setup.memory),
            "seconds": seconds,
            "sent_bytes": planned_setup.sent_bytes,
            "fits": planned_setup.fits,
        }


def setup_name(planned_setup: PlannedSetup) -> str:
    """Return the name of a setup in the table."""
    words = [planned_setup.setup.deepspeed]
    words += [] if planned_setup.setup.bits == 16 else [f"{planned_setup.setup.bits} bit"]
    words += ["fp32"] if planned_setup.config.training.precision == "fp32" else []
    return " ".join([*words, *(["recomputed"] if planned_setup.setup.checkpointing else [])])


def make_plan(request: PlanRequest, machine: Machine) -> PlanResult:
    """Plan every setup.

    Raises:
        UsageError: the language model does not exist, the batch does not divide over the ranks, or ``init``
            does not fit.
    """
    with configuration_folder(request.model) as folder:
        project = request.project(folder)
        planned = plan_setups(project, machine)
        return PlanResult(
            request=request,
            machine=machine,
            project=project,
            setups=planned,
            best=fastest_setup(planned),
            translation=plan_translation(project, machine),
        )


def readme_table(request: PlanRequest, machine: Machine) -> Iterator[str]:
    """Yield the table of signllm/models/README.md as lines: four language models, three kinds of nodes."""
    yield f"| frozen LLM | {' | '.join(f'8 x {name}' for name in TABLE_GPUS)} |"
    yield "|---" * (1 + len(TABLE_GPUS)) + "|"
    for name in TABLE_MODELS:
        with configuration_folder(name) as folder:
            project = replace(request, llm=name).project(folder)
            cells = []
            for gpu in TABLE_GPUS:
                planned = plan_setups(project, replace(machine, gpu=find_gpu(gpu), nodes=1, gpus=8))
                cells.append(_cell(planned))
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(planned: list[PlannedSetup]) -> str:
    fitting = [setup for setup in planned if setup.fits and setup.setup.bits == 16]
    fastest = fastest_setup(fitting)
    if fastest is None or fastest.seconds is None:
        return "nothing fits"
    files = list(dict.fromkeys(setup.setup.deepspeed for setup in fitting))
    passes = fastest.config.training.accumulation
    return (
        f"**{setup_name(fastest)}**{f' in {passes} passes' if passes > 1 else ''}"
        f" {fastest.memory.peak / GIB:.0f} GiB, {fastest.seconds.total:.2f} s;"
        f" {'all fit' if files == list(FILES) else 'only ' + ', '.join(files) + ' fit'}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
