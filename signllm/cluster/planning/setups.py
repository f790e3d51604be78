"""The setups in which stage 3 can be trained on a cluster: what each needs, how fast it is, which is best.

A setup is a ZeRO file, whether the language model's activations are recomputed, and the number of bits of its
frozen weights. The global batch is the recipe's. If it does not fit at once, a step takes more forward passes
of fewer videos, as few passes as fit. Frozen weights in 8 or 4 bits are replicated, because ZeRO-3 does not
partition them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from signllm.cluster.planning.memory import PlannedMemory, plan_memory
from signllm.cluster.planning.meta_model import PassSize, build_meta_model, simulate_step, with_checkpointing
from signllm.cluster.planning.model_tensors import list_weights, no_words, set_trained, sign_llm_parts
from signllm.cluster.planning.roofline import Machine, StepTime, step_time
from signllm.cluster.planning.simulation import EMPTY_PASS, SimulatedPass
from signllm.cluster.planning.zero_costs import Weight, Zero, read_zero, step_traffic
from signllm.config import FinetuneConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.models.language_model.weight_quantization import Quantize
from signllm.models.sign_llm import SignLLM
from signllm.training.engine import deepspeed_settings

FILES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
QUANTIZED_FILE = "zero2"
HEADROOM = 0.1
"""Share of a GPU's memory left free for context, NCCL, workspace of convolutions and fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One way to train.

    Attributes:
        deepspeed: the ZeRO file.
        checkpointing: whether the language model's activations are recomputed.
        bits: bits of its frozen linear layers.
    """

    deepspeed: str
    checkpointing: bool
    bits: int = 16


SETUPS = (
    *(Setup(deepspeed=name, checkpointing=on) for name in FILES for on in (False, True)),
    *(
        Setup(deepspeed=QUANTIZED_FILE, checkpointing=on, bits=bits)
        for bits in (8, 4)
        for on in (False, True)
    ),
)


@dataclass(frozen=True, kw_only=True)
class PlannedSetup:
    """What a setup needs and how fast it is.

    Attributes:
        setup: the setup.
        config: configuration of a run with it.
        memory: memory of a rank.
        seconds: duration of a step. None if the model states alone do not fit; then no pass was simulated,
            and the memory is without one.
        sent_bytes: bytes that a rank sends in a step.
        fits: whether the memory with headroom suffices, for some number of forward passes.
    """

    setup: Setup
    config: FinetuneConfig
    memory: PlannedMemory
    seconds: StepTime | None
    sent_bytes: float
    fits: bool


@dataclass(kw_only=True)
class Project:
    """What is to be trained; a pass is simulated once for each number of videos, for any machine.

    Attributes:
        config: configuration of stage 3 with an encoder; its language model's path is a folder with a
            configuration.
        frames: frames of each video.
        text_tokens: tokens of each reference.
        words: words that segment the characters; None makes every character a word.
    """

    config: FinetuneConfig
    frames: int
    text_tokens: int
    words: WordCodebook | None = None
    _simulated: dict[tuple[int, bool, str], SimulatedPass] = field(default_factory=dict)
    _models: dict[tuple[bool, str], SignLLM] = field(default_factory=dict)

    def model(self, config: FinetuneConfig) -> SignLLM:
        """Return the model of this configuration on the meta device; equal configurations share one."""
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
        """Whether a phase reads videos; if so it is planned, else the one on recorded characters."""
        return self.config.training.epochs is None or self.config.frozen_epochs < self.config.training.epochs

    def videos(self, config: FinetuneConfig, ranks: int) -> int:
        """Return the videos of a rank's forward pass; fewer of long videos if the recipe limits frames."""
        videos, limit = config.training.videos_per_forward // ranks, config.data.max_frames_per_batch
        return videos if limit is None else min(videos, max(1, limit // (ranks * self.frames)))

    def weights(self, config: FinetuneConfig) -> list[Weight]:
        """Return the weights of the model, trained and frozen as in the planned phase."""
        return list_weights(self.model(config))

    def simulated_pass(self, config: FinetuneConfig, videos: int) -> SimulatedPass:
        """Return a rank's forward and backward pass on ``videos`` videos."""
        model = config.sign_llm.language_model
        key = (videos, model.gradient_checkpointing, config.training.precision)
        if key not in self._simulated:
            work = PassSize(videos=videos, frames=self.frames, text_tokens=self.text_tokens)
            self._simulated[key] = simulate_step(
                self.model(config), work, size=self.config.data.size, video=self.video
            )
        return self._simulated[key]

    def buffers(self, config: FinetuneConfig) -> int:
        """Return the bytes of the model's buffers."""
        return sum(buffer.nbytes for buffer in self.model(config).buffers())


def open_project(
    config: FinetuneConfig, folder: str, *, frames: int, text_tokens: int, words: WordCodebook | None
) -> Project:
    """Return the project of a recipe with the language model whose configuration is in ``folder``.

    Raises:
        UsageError: the number of frames or tokens is too small.
    """
    if frames < 1 or text_tokens < 2:
        raise UsageError(
            f"videos have {frames} frames and texts {text_tokens} tokens",
            where="--frames, --text-tokens",
            remedy="give 1 frame or more, and 2 tokens or more",
        )
    model = replace(config.sign_llm.language_model, path=folder, attention=None)
    config = replace(config, sign_llm=replace(config.sign_llm, language_model=model))
    return Project(config=config, frames=frames, text_tokens=text_tokens, words=words)


def plan_setups(project: Project, machine: Machine) -> list[PlannedSetup]:
    """Return every setup on a machine, in the order of ``SETUPS``.

    Raises:
        UsageError: the recipe's batch does not divide over the ranks.
    """
    deepspeed_settings(project.config.training, world=machine.ranks)
    return [plan_setup(project, machine, setup) for setup in SETUPS]


def plan_setup(project: Project, machine: Machine, setup: Setup) -> PlannedSetup:
    """Return a setup with as few forward passes as fit, or with one video per pass if none fits."""
    limit = machine.gpu.memory_gib * 2**30 * (1 - HEADROOM)
    per_rank = project.config.training.batch_size // machine.ranks
    planned: PlannedSetup | None = _plan_with_passes(
        project, machine, setup, per_rank, limit, simulated=EMPTY_PASS
    )
    assert planned is not None
    if not planned.fits:
        return planned
    planned = None
    for passes in _forward_passes(project.config, machine):
        if planned is not None and _cannot_fit(planned, limit, passes):
            continue
        planned = _plan_with_passes(project, machine, setup, passes, limit)
        if planned.fits:
            break
    assert planned is not None
    return planned


def setup_memory(project: Project, machine: Machine, setup: Setup) -> PlannedMemory:
    """Return the memory of a rank with the recipe's own number of forward passes."""
    passes = project.config.training.accumulation
    return _plan_with_passes(project, machine, setup, passes, limit=math.inf).memory


def _forward_passes(config: FinetuneConfig, machine: Machine) -> Iterator[int]:
    training = config.training
    per_rank = training.batch_size // machine.ranks
    yield from (n for n in range(training.accumulation, per_rank + 1) if per_rank % n == 0)


def _cannot_fit(before: PlannedSetup, limit: float, passes: int) -> bool:
    """Return whether this number of passes surely does not fit, as activations are proportional to videos."""
    training = before.config.training
    share = training.accumulation / passes
    rest = before.memory.peak - before.memory.activations
    is_last = passes == training.batch_size
    return not is_last and rest < limit and rest + 0.9 * share * before.memory.activations > limit


def _plan_with_passes(
    project: Project,
    machine: Machine,
    setup: Setup,
    passes: int,
    limit: float,
    simulated: SimulatedPass | None = None,
) -> PlannedSetup:
    config = apply_setup(project.config, setup, passes)
    settings = deepspeed_settings(config.training, world=machine.ranks)
    zero = read_zero(settings, ranks=machine.ranks)
    weights = project.weights(config)
    if simulated is None:
        simulated = project.simulated_pass(config, project.videos(config, machine.ranks))
    needed = plan_memory(weights, zero, settings, simulated, buffers=project.buffers(config), bits=setup.bits)
    seconds = step_time(
        weights,
        zero,
        settings,
        simulated,
        needed,
        machine,
        forward_passes=passes,
        bits=setup.bits,
        passes_over_weights=3 if setup.checkpointing else 2,
    )
    return PlannedSetup(
        setup=setup,
        config=config,
        memory=needed,
        seconds=None if simulated is EMPTY_PASS else seconds,
        sent_bytes=_sent(weights, zero, passes),
        fits=needed.peak <= limit,
    )


def _sent(weights: list[Weight], zero: Zero, passes: int) -> float:
    return sum(c.sent(zero.ranks) for c in step_traffic(weights, zero, forward_passes=passes))


def apply_setup(config: FinetuneConfig, setup: Setup, passes: int) -> FinetuneConfig:
    """Return the configuration of a run with this setup; ZeRO-0 has no master weights and needs 32 bits."""
    precision = "fp32" if setup.deepspeed == "zero0" else config.training.precision
    training = replace(config.training, deepspeed=setup.deepspeed, accumulation=passes, precision=precision)
    config = replace(with_checkpointing(config, on=setup.checkpointing), training=training)
    quantize: dict[int, Quantize] = {4: "4bit", 8: "8bit", 16: "none"}
    model = replace(config.sign_llm.language_model, quantize=quantize[setup.bits])
    return replace(config, sign_llm=replace(config.sign_llm, language_model=model))


def fastest_setup(planned: list[PlannedSetup]) -> PlannedSetup | None:
    """Return the fastest setup that fits."""
    return min((setup for setup in planned if setup.fits), key=_slowness, default=None)


def _slowness(planned_setup: PlannedSetup) -> tuple[float, int, int]:
    return (
        planned_setup.seconds.total if planned_setup.seconds else math.inf,
        planned_setup.memory.peak,
        planned_setup.memory.gradients,
    )
