"""The quantizer: it replaces each vector by the nearest of K codes, with a straight-through gradient.

Its loss is L_q = |sg(z) - c|^2 + gamma |z - sg(c)|^2 (paper section 3.2), averaged over the positions of the
real videos of the global batch and over D; sg stops the gradient. The codebook is trained by this gradient,
as in the paper, or is an exponential moving average (EMA) of the vectors assigned to each code, which is our
option and can revive unused codes. All statistics that change a code are reduced over the ranks, so every
rank has the same codebook.

An alternative is finite scalar quantization (:mod:`signllm.models.vq_sign.finite_scalar_quantization`): z is
projected to a few numbers that are rounded, the codes are the points of their grid, and L_q is 0.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from signllm.distributed.collectives import gather_counts, gather_packed, reduce_sum, world_and_rank
from signllm.errors import UsageError
from signllm.kernels.vq_assign import vq_assign
from signllm.models.vq_sign.finite_scalar_quantization import FiniteScalarQuantizer
from signllm.validation import FractionBelowOne, NonNegativeFloat, NonNegativeInt, validated


@validated
class QuantizerConfig:
    """Configuration of the quantizer.

    Attributes:
        codes: K, the number of codes (paper: 256). With ``fsq`` it must be the product of ``levels``, because
            all other parts read the number of codes here.
        commitment: gamma, the weight of the commitment loss (paper: 0.25); ``fsq`` has no such loss.
        update: how the codebook is trained: ``gradient`` (paper), ``ema``, or ``fsq`` (finite scalar
            quantization; see the docstring of this module). With ``none`` there are no codes: z is passed on
            unchanged, and every clip is a token of its own (the ablation without quantization).
        levels: L_1, ..., L_d, the number of values of each rounded number, for ``fsq`` only. Mentzer et al.
            use 5 to 8 values (table 1), for example 8 6 5 for 240 codes or 8 5 5 5 for 1000.
        decay: decay of the moving averages, for ``ema``.
        decay_warmup: the decay in step t = 0, 1, ... is at most (1 + t) / (decay_warmup + t); 0 means a
            constant decay. At the beginning of training the encoder changes z by a fifth of its variance per
            step. Codes that average over 1 / (1 - decay) steps cannot follow, until all z are nearest to a
            few codes; with 10 they follow.
        kmeans_start: whether the codes are initialized by k-means on the first batches instead of by U(-1/K,
            1/K) (paper). With ``fsq`` the two projections are initialized by a principal component analysis
            of the same vectors instead of randomly; Mentzer et al. have no such step.
        kmeans_batches: number of training batches for the k-means initialization.
        revive_dead_after: a code unused for so many training steps becomes a vector of the batch; 0 never;
            ``ema`` alone, because an optimizer would undo it. Only until words are composed: see
            ``Quantizer.keeps_codes``.
        seed: of the start and of the revivals.
    """

    codes: Annotated[int, Field(ge=2)] = 256
    commitment: NonNegativeFloat = 0.25
    update: Literal["gradient", "ema", "fsq", "none"] = "gradient"
    levels: tuple[Annotated[int, Field(ge=2)], ...] = ()
    decay: FractionBelowOne = 0.99
    decay_warmup: NonNegativeInt = 0
    kmeans_start: bool = False
    kmeans_batches: NonNegativeInt = 8
    revive_dead_after: NonNegativeInt = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.revive_dead_after and self.update != "ema":
            raise UsageError(
                "revive_dead_after needs the EMA codebook, because the optimizer would undo a revival",
                where="revive_dead_after",
                remedy="set quantizer.update=ema, or revive_dead_after=0",
            )
        self._check_levels()

    def _check_levels(self) -> None:
        """Check that there are levels for ``fsq`` only, and that their product is the number of codes."""
        listed = " ".join(map(str, self.levels))
        if self.update != "fsq":
            if self.levels:
                raise UsageError(
                    f"quantizer.levels is {listed}, but only finite scalar quantization has levels",
                    where="levels",
                    remedy="set quantizer.update=fsq, or leave the levels out",
                )
            return
        if not self.levels:
            raise UsageError(
                "quantizer.levels is empty; finite scalar quantization needs at least one number",
                where="levels",
                remedy="give for example 8 6 5, with codes=240",
            )
        product = math.prod(self.levels)
        if product != self.codes:
            raise UsageError(
                f"quantizer.codes is {self.codes}, but the product of the levels {listed} is {product}",
                where="levels",
                remedy=f"set quantizer.codes={product}, or give other levels",
            )


class Quantized(NamedTuple):
    """The output of the quantizer for packed vectors; a tuple, because ZeRO-3 looks for tensors in tuples.

    Attributes:
        vectors: (n, D) codes with the gradient of the identity (straight-through).
        codes: (n, D) codes with their own gradient; constants if no gradient trains the codebook itself.
        index: (n,) int64 characters.
        loss: this rank's share of L_q.
        metrics: this rank's shares of ``perplexity`` (exp of the entropy of the use of codes) and
            ``codes_used``.
    """

    vectors: Tensor
    codes: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nothing calls
    loss: Tensor
    metrics: dict[str, Tensor]


class _WeighedGradient(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.weight = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.weight, None


def _weigh_gradient(x: Tensor, weight: float) -> Tensor:
    """Return x with a gradient that is multiplied by ``weight``."""
    weighed: Tensor = _WeighedGradient.apply(x, weight)
    return weighed


class Quantizer(nn.Module):
    """The codebook (K, D) and the assignment of vectors to its codes; see the module's docstring.

    Attributes:
        codebook: (K, D) codes. With ``fsq`` it is a buffer that every training step computes from the
            projections before they are trained, as an EMA codebook is one of the last step too. Evaluation
            and recorded characters use the buffer, so that the vectors of characters, the checkpoint and the
            fingerprint that words are checked against are of one codebook.
        recent_use: float32 (K,), how often training has used each code, over all ranks, since it was last set
            to None.
        keeps_codes: whether no code is revived, because words already exist. Words are spelled in codes: a
            revived code takes over the clips of another code, and words that contain that code no longer
            occur.
    """

    codebook: Tensor
    members: Tensor
    sums: Tensor
    idle_steps: Tensor
    revivals: Tensor
    updates: Tensor

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.has_codes = config.update != "none"
        self.recent_use: Tensor | None = None
        self.keeps_codes = False
        generator = torch.Generator().manual_seed(config.seed)
        self.scalars: FiniteScalarQuantizer | None = None
        if config.update == "fsq":
            self.scalars = FiniteScalarQuantizer(config.levels, width, generator=generator)
            self.register_buffer("codebook", self.scalars.project_grid())
            return
        initial = (torch.rand(config.codes, width, generator=generator) * 2 - 1) / config.codes
        if config.update == "gradient":
            self.codebook = nn.Parameter(initial)
            return
        self.register_buffer("codebook", initial)
        if not self.has_codes:
            return
        self.register_buffer("members", torch.ones(config.codes))
        self.register_buffer("sums", initial.clone())
        self.register_buffer("idle_steps", torch.zeros(config.codes))
        self.register_buffer("revivals", torch.zeros(1))
        if config.decay_warmup:
            self.register_buffer(
                "updates", torch.zeros(1, dtype=torch.int64)
            )  # int64, because a conversion to bf16 would round it

    def forward(self, z: Tensor, counts: Tensor, is_real: Tensor | None = None) -> Quantized:
        """Assign codes to vectors; with an EMA codebook in training mode, also update the codes.

        Args:
            z: (n, D) packed vectors, or (n,) int64 characters. For characters, their codes are returned as
                constants, without a loss; they are looked up here because under ZeRO-3 only the forward
                method of a module may read its parameters. Without codes the vectors are returned unchanged,
                each as character 0.
            counts: (B,) number of vectors of each video.
            is_real: (B,) bool, False for videos that only fill up a batch; their weight is 0.
        """
        if not self.has_codes:
            return Quantized(z, z, counts.new_zeros(len(z)), z.new_zeros(()), {})
        if not z.is_floating_point():
            codes = functional.embedding(z, self.codebook.detach())
            return Quantized(codes, codes, z, codes.new_zeros(()), {})
        weight = row_weights(counts, is_real)
        if self.scalars is not None:
            vectors, codes, index = self._quantize_scalars(z, self.scalars)
            used = self._count_codes(index, weight)
            return Quantized(vectors, codes, index, codes.new_zeros(()), _usage(used))
        index, distance = self._assign(z)
        codes = functional.embedding(index, self.codebook).to(z.dtype)
        used = self._count_codes(index, weight)
        total = used.sum().clamp(min=1.0)
        loss = (distance * weight).sum() / (total * z.shape[1])
        quantized = Quantized(z + (codes - z).detach(), codes, index, loss, _usage(used))
        if self.training and torch.is_grad_enabled() and self.config.update == "ema":
            self._move(z.detach().float(), counts, index, weight, used)
        return quantized

    @torch.no_grad()
    def recorded(self, z: Tensor) -> Tensor:
        """Return the characters (n,) of packed vectors (n, D); without codes, the vectors as float32.

        Unlike ``forward`` it communicates nothing, so ranks may call it unequally often (not under ZeRO-3).
        """
        if self.scalars is not None:
            return self.scalars.characters(z)
        return vq_assign(z, self.codebook) if self.has_codes else z.float()

    @torch.no_grad()
    def start(self, sample: Tensor) -> None:
        """Initialize the codes by k-means on ``sample`` (n, D); all ranks use the result of rank 0.

        With ``fsq`` this initializes the projections by a principal component analysis.
        """
        if not self.has_codes:
            return
        if self.scalars is not None:
            self.scalars.start(sample)
            self.codebook.copy_(self.scalars.project_grid())
            return
        centres = kmeans(sample.float(), self.config.codes, seed=self.config.seed)
        if world_and_rank()[0] > 1:
            torch.distributed.broadcast(centres, src=0)
        self.codebook.copy_(centres)
        if self.config.update == "ema":
            members = torch.bincount(vq_assign(sample, centres), minlength=self.config.codes)
            self.members.copy_(members * (self.config.codes / members.sum()))
            self.sums.copy_(centres * self.members[:, None])

    def _count_codes(self, index: Tensor, weight: Tensor) -> Tensor:
        """Return how often all ranks use each code, float32 (K,); training adds it to ``recent_use``."""
        local = torch.zeros(self.config.codes, dtype=torch.float32, device=index.device)
        used = reduce_sum(local.index_add_(0, index, weight))
        if self.training:
            self.recent_use = used if self.recent_use is None else self.recent_use + used
        return used

    def _quantize_scalars(self, z: Tensor, scalars: FiniteScalarQuantizer) -> tuple[Tensor, Tensor, Tensor]:
        """Return straight-through vectors (n, D), codes (n, D) and characters (n,) of ``fsq``."""
        vectors, index, codebook = scalars(z)
        if self.training and torch.is_grad_enabled() and scalars.decode_weight.requires_grad:
            self.codebook.copy_(codebook)
        codes = functional.embedding(index, self.codebook).to(z.dtype)
        if torch.is_grad_enabled():
            return vectors + (codes - vectors).detach(), codes, index
        return codes, codes, index

    def _assign(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index of the nearest code (n,) and |sg(z) - c|^2 + gamma |z - sg(c)|^2 (n,).

        With an EMA codebook, only the second term is returned. Both terms are computed from one distance,
        because they differ only in their gradients.
        """
        gamma = self.config.commitment
        if self.config.update == "ema":
            codebook = self.codebook.clone()  # `_move` changes it before the backward pass reads it
            index, distance = vq_assign(z, codebook, return_distance=True)
            return index, gamma * distance
        index, distance = vq_assign(
            _weigh_gradient(z, gamma / (1 + gamma)),
            _weigh_gradient(self.codebook, 1 / (1 + gamma)),
            return_distance=True,
        )
        return index, (1 + gamma) * distance

    @torch.no_grad()
    def _move(self, z: Tensor, counts: Tensor, index: Tensor, weight: Tensor, used: Tensor) -> None:
        """Update the EMA codebook from one step; members are counted in units of the mean number per code."""
        sums = reduce_sum(
            torch.zeros_like(self.sums, dtype=torch.float32).index_add_(0, index, z * weight[:, None])
        )
        per_code = self.config.codes / used.sum().clamp(min=1.0)
        rate = 1 - self._decay()
        self.members.lerp_((used * per_code).to(self.members.dtype), rate)
        self.sums.lerp_((sums * per_code).to(self.sums.dtype), rate)
        alive = self.members > 1e-3
        self.codebook.copy_(
            torch.where(alive[:, None], self.sums / self.members.clamp(min=1e-3)[:, None], self.codebook)
        )
        self.idle_steps.add_(1).mul_((used == 0).to(self.idle_steps.dtype))
        if self.config.revive_dead_after and not self.keeps_codes:
            self._revive(z, counts, weight)

    def _decay(self) -> float:
        """Return the decay of this step, and count the step."""
        if not self.config.decay_warmup:
            return self.config.decay
        step = int(self.updates)
        self.updates += 1
        return min(self.config.decay, (1 + step) / (self.config.decay_warmup + step))

    def _revive(self, z: Tensor, counts: Tensor, weight: Tensor) -> None:
        dead = (self.idle_steps >= self.config.revive_dead_after).nonzero()[:, 0]
        if len(dead) == 0:
            return
        rows = gather_packed(z, counts)[gather_packed(weight, counts) > 0]
        generator = torch.Generator().manual_seed(self.config.seed + int(self.revivals.item()) + 1)
        chosen = torch.randperm(len(rows), generator=generator)[: len(dead)].to(rows.device)
        dead = dead[: len(chosen)]
        self.codebook[dead] = rows[chosen].to(self.codebook.dtype)
        self.members[dead] = 1.0
        self.sums[dead] = self.codebook[dead].to(self.sums.dtype)
        self.idle_steps[dead] = 0
        self.revivals += len(dead)


def row_weights(counts: Tensor, is_real: Tensor | None) -> Tensor:
    """Return the weight of every packed row, float32: 1.0 in a real video, 0.0 otherwise."""
    real = torch.ones_like(counts, dtype=torch.float32) if is_real is None else is_real.float()
    return torch.repeat_interleave(real, counts)


def kmeans(sample: Tensor, clusters: int, *, seed: int, iterations: int = 20) -> Tensor:
    """Return the k-means centers (clusters, D) of ``sample`` (n, D): k-means++, then Lloyd iterations.

    The result is deterministic. If there are fewer vectors than clusters, the remaining centers are repeated
    vectors with a small random offset, so that all codes differ.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = _seeds(sample, clusters, generator)
    for _ in range(iterations):
        index = vq_assign(sample, centres)
        members = torch.bincount(index, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, index, sample)
        centres = torch.where(members[:, None] > 0, sums / members.clamp(min=1)[:, None], centres)
    return centres


def _seeds(sample: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Return initial centers by k-means++.

    A vector is drawn in proportion to its squared distance to the nearest center so far.
    """
    if len(sample) < clusters:
        extra = sample[
            torch.randint(len(sample), (clusters - len(sample),), generator=generator).to(sample.device)
        ]
        noise = torch.randn(extra.shape, generator=generator).to(sample.device) * sample.std() * 0.01
        return torch.cat([sample, extra + noise])
    seeds = [sample[int(torch.randint(len(sample), (1,), generator=generator))]]
    nearest = torch.full((len(sample),), torch.inf, device=sample.device)
    for _ in range(clusters - 1):
        nearest = torch.minimum(nearest, (sample - seeds[-1]).square().sum(dim=1))
        mass = nearest.double().cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.float64).to(mass.device) * mass[-1]
        seeds.append(sample[int(torch.searchsorted(mass, drawn).clamp(max=len(sample) - 1))])
    return torch.stack(seeds)


def gather_sample(z: Tensor, counts: Tensor, is_real: Tensor) -> Tensor:
    """Return the vectors of the real videos of all ranks in global order, equal on every rank."""
    real = gather_counts(is_real.to(torch.int64)).bool()
    return gather_packed(z, counts)[torch.repeat_interleave(real, gather_counts(counts))]


def _usage(used: Tensor) -> dict[str, Tensor]:
    world, _ = world_and_rank()
    share = used / used.sum().clamp(min=1.0)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"perplexity": entropy.exp() / world, "codes_used": (used > 0).sum().float() / world}
