"""The ways to train stage 3 with a language model on a cluster: what each needs and takes, and which is best.

A way is a ZeRO file, whether the language model's activations are recomputed, and the bits of its frozen
weights. The global batch is the recipe's. Where it does not fit at once, a step takes more forward passes of
fewer videos, the fewest that fit. Frozen weights in 8 or 4 bits are replicated: ZeRO-3 does not cut them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from signllm.cluster.memory import PlannedMemory, plan_memory
from signllm.cluster.meta_model import PassSize, build_meta_model, simulate_step, with_checkpointing
from signllm.cluster.model_tensors import list_weights, no_words, set_trained, sign_llm_parts
from signllm.cluster.roofline import Machine, StepTime, step_time
from signllm.cluster.simulation import EMPTY_PASS, SimulatedPass
from signllm.cluster.zero_costs import Weight, Zero, read_zero, step_traffic
from signllm.config import FinetuneConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.models.language_model_quantization import Quantize
from signllm.models.sign_llm import SignLLM
from signllm.training.engine import deepspeed_settings

FILES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
QUANTISED_FILE = "zero2"
HEADROOM = 0.1
"""Share of a GPU's memory left free: context, NCCL, workspace of convolutions, fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One way to train.

    Attributes:
        deepspeed: the ZeRO file.
        checkpointing: the language model's activations are recomputed.
        bits: of its frozen maps.
    """

    deepspeed: str
    checkpointing: bool
    bits: int = 16


SETUPS = (
    *(Setup(deepspeed=name, checkpointing=on) for name in FILES for on in (False, True)),
    *(
        Setup(deepspeed=QUANTISED_FILE, checkpointing=on, bits=bits)
        for bits in (8, 4)
        for on in (False, True)
    ),
)


@dataclass(frozen=True, kw_only=True)
class PlannedSetup:
    """What a way needs and takes.

    Attributes:
        way: it.
        config: of the run, with it.
        memory: of a rank.
        seconds: of a step; None where what a rank holds throughout is too much already: no pass was rehearsed
            then, and the memory is without one.
        sent_bytes: that a rank sends in a step.
        fits: whether memory and headroom are enough, at some number of forward passes.
    """

    way: Setup
    config: FinetuneConfig
    memory: PlannedMemory
    seconds: StepTime | None
    sent_bytes: float
    fits: bool


@dataclass(kw_only=True)
class Project:
    """What is to be trained: rehearsed once for each share of the batch, whatever the machine.

    Attributes:
        config: of stage 3, with an encoder; its language model's path is a folder with a configuration.
        frames: of each video.
        text_tokens: of each reference.
        words: that segment the characters; None: every character is a word.
    """

    config: FinetuneConfig
    frames: int
    text_tokens: int
    words: WordCodebook | None = None
    _rehearsals: dict[tuple[int, bool, str], SimulatedPass] = field(default_factory=dict)
    _models: dict[tuple[bool, str], SignLLM] = field(default_factory=dict)

    def model(self, config: FinetuneConfig) -> SignLLM:
        """Return a stand-in of the model that this configuration builds; one for each that differs."""
        key = (config.sign_llm.language_model.gradient_checkpointing, config.training.precision)
        if key not in self._models:
            assert config.sign_llm.vq_sign is not None
            missing: list[str] = []
            parts = sign_llm_parts(config, self.words, missing)
            if "vq_sign" not in parts or "language_model" not in parts:
                raise UsageError(
                    missing[0], where="signllm plan", remedy="give a folder with its config.json"
                )
            set_trained(parts["vq_sign"], joint=self.video)
            known = self.words or no_words(config.sign_llm.vq_sign.quantizer.codes)
            self._models[key] = build_meta_model(dict(parts.items()), config, known)
        return self._models[key]

    @cached_property
    def video(self) -> bool:
        """Whether a phase reads videos: it is the one that is planned; else characters that were recorded."""
        return self.config.training.epochs is None or self.config.frozen_epochs < self.config.training.epochs

    def videos(self, config: FinetuneConfig, ranks: int) -> int:
        """Return the videos of a rank's forward pass: fewer of this length where the recipe limits frames."""
        videos, limit = config.training.videos_per_forward // ranks, config.data.max_frames_per_batch
        return videos if limit is None else min(videos, max(1, limit // (ranks * self.frames)))

    def weights(self, config: FinetuneConfig) -> list[Weight]:
        """Return the tensors of the model, trained and frozen as in the planned phase."""
        return list_weights(self.model(config))

    def rehearsal(self, config: FinetuneConfig, videos: int) -> SimulatedPass:
        """Return a forward and backward pass of a rank on so many videos."""
        model = config.sign_llm.language_model
        key = (videos, model.gradient_checkpointing, config.training.precision)
        if key not in self._rehearsals:
            work = PassSize(videos=videos, frames=self.frames, text_tokens=self.text_tokens)
            self._rehearsals[key] = simulate_step(
                self.model(config), work, size=self.config.data.size, video=self.video
            )
        return self._rehearsals[key]

    def buffers(self, config: FinetuneConfig) -> int:
        """Return the bytes of what the model holds beside its weights."""
        return sum(buffer.nbytes for buffer in self.model(config).buffers())


def open_project(
    config: FinetuneConfig, folder: str, *, frames: int, text_tokens: int, words: WordCodebook | None
) -> Project:
    """Return the project of a recipe with the language model whose configuration lies in ``folder``."""
    if frames < 1 or text_tokens < 2:
        raise UsageError(
            f"videos of {frames} frames, texts of {text_tokens} tokens",
            where="--frames, --text-tokens",
            remedy="give 1 frame or more, and 2 tokens or more",
        )
    model = replace(config.sign_llm.language_model, path=folder, attention=None)
    config = replace(config, sign_llm=replace(config.sign_llm, language_model=model))
    return Project(config=config, frames=frames, text_tokens=text_tokens, words=words)


def plan_setups(project: Project, machine: Machine) -> list[PlannedSetup]:
    """Return every way on a machine, in the order of ``WAYS``.

    Raises:
        UsageError: the recipe's batch does not divide over the ranks.
    """
    deepspeed_settings(project.config.training, world=machine.ranks)
    return [plan_setup(project, machine, way) for way in SETUPS]


def plan_setup(project: Project, machine: Machine, way: Setup) -> PlannedSetup:
    """Return a way with the fewest forward passes with which it fits; with one video at a time if none do."""
    limit = machine.gpu.memory_gib * 2**30 * (1 - HEADROOM)
    per_rank = project.config.training.batch_size // machine.ranks
    found: PlannedSetup | None = _plan_with_passes(
        project, machine, way, per_rank, limit, rehearsal=EMPTY_PASS
    )
    assert found is not None
    if not found.fits:
        return found
    found = None
    for passes in _forward_passes(project.config, machine):
        if found is not None and _cannot_yet(found, limit, passes):
            continue
        found = _plan_with_passes(project, machine, way, passes, limit)
        if found.fits:
            break
    assert found is not None
    return found


def setup_memory(project: Project, machine: Machine, way: Setup) -> PlannedMemory:
    """Return what a rank needs with the recipe's own number of forward passes."""
    passes = project.config.training.accumulation
    return _plan_with_passes(project, machine, way, passes, limit=math.inf).memory


def _forward_passes(config: FinetuneConfig, machine: Machine) -> Iterator[int]:
    training = config.training
    per_rank = training.batch_size // machine.ranks
    yield from (n for n in range(training.accumulation, per_rank + 1) if per_rank % n == 0)


def _cannot_yet(before: PlannedSetup, limit: float, passes: int) -> bool:
    """Whether so many passes leave too much, activations being in proportion to videos; the last is tried."""
    training = before.config.training
    share = training.accumulation / passes
    rest = before.memory.peak - before.memory.activations
    is_last = passes == training.batch_size
    return not is_last and rest < limit and rest + 0.9 * share * before.memory.activations > limit


def _plan_with_passes(
    project: Project,
    machine: Machine,
    way: Setup,
    passes: int,
    limit: float,
    rehearsal: SimulatedPass | None = None,
) -> PlannedSetup:
    config = apply_setup(project.config, way, passes)
    settings = deepspeed_settings(config.training, world=machine.ranks)
    zero = read_zero(settings, ranks=machine.ranks)
    weights = project.weights(config)
    if rehearsal is None:
        rehearsal = project.rehearsal(config, project.videos(config, machine.ranks))
    needed = plan_memory(weights, zero, settings, rehearsal, buffers=project.buffers(config), bits=way.bits)
    seconds = step_time(
        weights,
        zero,
        settings,
        rehearsal,
        needed,
        machine,
        forward_passes=passes,
        bits=way.bits,
        passes_over_weights=3 if way.checkpointing else 2,
    )
    return PlannedSetup(
        way=way,
        config=config,
        memory=needed,
        seconds=None if rehearsal is EMPTY_PASS else seconds,
        sent_bytes=_sent(weights, zero, passes),
        fits=needed.peak <= limit,
    )


def _sent(weights: list[Weight], zero: Zero, passes: int) -> float:
    return sum(one.sent(zero.ranks) for one in step_traffic(weights, zero, forward_passes=passes))


def apply_setup(config: FinetuneConfig, way: Setup, passes: int) -> FinetuneConfig:
    """Return the settings of a run that trains this way; ZeRO-0 has no master weights, so needs 32 bits."""
    precision = "fp32" if way.deepspeed == "zero0" else config.training.precision
    training = replace(config.training, deepspeed=way.deepspeed, accumulation=passes, precision=precision)
    config = replace(with_checkpointing(config, on=way.checkpointing), training=training)
    quantize: dict[int, Quantize] = {4: "4bit", 8: "8bit", 16: "none"}
    model = replace(config.sign_llm.language_model, quantize=quantize[way.bits])
    return replace(config, sign_llm=replace(config.sign_llm, language_model=model))


def fastest_setup(found: list[PlannedSetup]) -> PlannedSetup | None:
    """Return the fastest way that fits and can be launched."""
    return min((one for one in found if one.fits), key=_slowness, default=None)


def _slowness(one: PlannedSetup) -> tuple[float, int, int]:
    return one.seconds.total if one.seconds else math.inf, one.memory.peak, one.memory.gradients
