"""Vectors to characters: the nearest of K codes, with a gradient straight through (paper section 3.2).

L_q = |sg(z) - c|^2 + gamma |z - sg(c)|^2, here averaged over the positions of the real videos of the global
batch and over D. The codebook learns by this gradient (the paper) or as a moving average of its members (EMA;
ours, with revival of dead codes). Everything that moves a code is reduced over ranks first, so every rank
holds the same codebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.errors import UsageError
from signllm.kernels.vq_assign import vq_assign
from signllm.models.collectives import gather_counts, gather_packed, reduce_sum, world_and_rank


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """The codebook and how it learns.

    Attributes:
        codes: K (paper: 256).
        commitment: gamma (paper: 0.25).
        update: ``gradient`` (paper), ``ema``, or ``none``: there are no codes, z passes as it is, and every
            clip is one token (the ablation without VQ).
        decay: of the moving averages; ``ema`` alone.
        decay_warmup: the decay of step t = 0, 1, ... is at most (1 + t) / (decay_warmup + t); 0: constant.
            A young encoder moves z by a fifth of its variance a step; codes that average over 1 / (1 - decay)
            steps stay behind, until all z are nearest to the few codes on their side. 10 keeps up.
        kmeans_start: the first codes are the k-means centres of the first batches instead of U(-1/K, 1/K)
            (paper).
        kmeans_batches: batches of the training data that the k-means start looks at.
        revive_dead_after: a code unused for so many training steps becomes a vector of the batch; 0 never;
            ``ema`` alone, because an optimizer would undo it. Only until words are composed: see
            ``Quantizer.keeps_codes``.
        seed: of the start and of the revivals.
    """

    codes: int = 256
    commitment: float = 0.25
    update: Literal["gradient", "ema", "none"] = "gradient"
    decay: float = 0.99
    decay_warmup: int = 0
    kmeans_start: bool = False
    kmeans_batches: int = 8
    revive_dead_after: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.codes < 2:
            raise UsageError(
                f"quantizer.codes is {self.codes}; a codebook needs at least 2", remedy="the paper has 256"
            )
        if self.revive_dead_after and self.update != "ema":
            raise UsageError(
                "dead codes can only be revived with the EMA codebook: the optimizer would undo it",
                where="quantizer.revive_dead_after",
                remedy="set quantizer.update=ema, or revive_dead_after=0",
            )
        if not 0.0 <= self.decay < 1.0:
            raise UsageError(f"quantizer.decay is {self.decay}; it must be in [0, 1)", remedy="0.99 is usual")
        if self.decay_warmup < 0:
            raise UsageError(
                f"quantizer.decay_warmup is {self.decay_warmup}", remedy="give 0 (a constant decay) or more"
            )


class Quantized(NamedTuple):
    """What the quantiser makes of packed vectors (n, D); a tuple, where ZeRO-3 finds tensors.

    Attributes:
        vectors: (n, D) the codes in value, the identity in gradient (straight-through).
        codes: (n, D) the codes, without the gradient trick.
        index: (n,) int64 characters.
        loss: this rank's share of L_q.
        metrics: shares of ``perplexity`` (exp of the entropy of the codes' use) and ``codes_used``.
    """

    vectors: Tensor
    codes: Tensor
    index: Tensor
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
    """Return x itself, whose gradient counts ``weight`` times."""
    weighed: Tensor = _WeighedGradient.apply(x, weight)
    return weighed


class Quantizer(nn.Module):
    """Codebook (K, D) with nearest-code assignment; see the module's head.

    Attributes:
        recent_use: float32 (K,), how often training has used each code, over all ranks, since it was last set
            to None.
        keeps_codes: no code is revived. Words are spelled in codes: a code that moves to the vector of
            another one takes over its clips, and every word that contains the other one no longer occurs.
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
            self.register_buffer("updates", torch.zeros(1, dtype=torch.int64))  # which bf16 leaves whole

    def forward(self, z: Tensor, counts: Tensor, is_real: Tensor | None = None) -> Quantized:
        """Assign, pass the gradient through, and (EMA, training) move the codes.

        Args:
            z: (n, D) packed vectors; or (n,) int64 characters, whose codes come back as constants, without a
                loss (through here, because under ZeRO-3 only a module's own forward may read its parameters).
                Without codes the vectors come back as they are, each as character 0.
            counts: (B,) vectors of each video.
            is_real: (B,) bool, False for videos that only fill up a batch; they weigh nothing.
        """
        if not self.has_codes:
            return Quantized(z, z, counts.new_zeros(len(z)), z.new_zeros(()), {})
        if not z.is_floating_point():
            codes = functional.embedding(z, self.codebook.detach())
            return Quantized(codes, codes, z, codes.new_zeros(()), {})
        index, distance = self._assign(z)
        codes = functional.embedding(index, self.codebook).to(z.dtype)
        weight = row_weights(counts, is_real)
        used = reduce_sum(
            torch.zeros(self.config.codes, dtype=torch.float32, device=z.device).index_add_(0, index, weight)
        )
        total = used.sum().clamp(min=1.0)
        loss = (distance * weight).sum() / (total * z.shape[1])
        quantized = Quantized(z + (codes - z).detach(), codes, index, loss, _usage(used))
        if self.training:
            self.recent_use = used if self.recent_use is None else self.recent_use + used
        if self.training and torch.is_grad_enabled() and self.config.update == "ema":
            self._move(z.detach().float(), counts, index, weight, used)
        return quantized

    @torch.no_grad()
    def recorded(self, z: Tensor) -> Tensor:
        """Return what is recorded of packed vectors (n, D): characters (n,), or without codes themselves.

        Unlike ``forward`` it counts nothing, so that ranks may call it unequally often (not under ZeRO-3).
        """
        return vq_assign(z, self.codebook) if self.has_codes else z.float()

    @torch.no_grad()
    def start(self, sample: Tensor) -> None:
        """Set the codes to the k-means centres of ``sample`` (n, D); rank 0's result counts for all."""
        if not self.has_codes:
            return
        centres = kmeans(sample.float(), self.config.codes, seed=self.config.seed)
        if world_and_rank()[0] > 1:
            torch.distributed.broadcast(centres, src=0)
        self.codebook.copy_(centres)
        if self.config.update == "ema":
            members = torch.bincount(vq_assign(sample, centres), minlength=self.config.codes)
            self.members.copy_(members * (self.config.codes / members.sum()))
            self.sums.copy_(centres * self.members[:, None])

    def _assign(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return index (n,) and |sg(z) - c|^2 + gamma |z - sg(c)|^2 (n,); EMA: the second term alone.

        One distance serves both terms: they differ only in whom their gradient reaches.
        """
        gamma = self.config.commitment
        if self.config.update == "ema":
            codebook = self.codebook.clone()  # `_move` writes to it before the backward pass reads it
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
        """Take one EMA step: members and sums move to this step's, in units of an average code's members."""
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
        """Return this step's decay and count the step."""
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
    """Return 1.0 for every packed row of a real video, 0.0 for the others: (sum of counts,) float32."""
    real = torch.ones_like(counts, dtype=torch.float32) if is_real is None else is_real.float()
    return torch.repeat_interleave(real, counts)


def kmeans(sample: Tensor, clusters: int, *, seed: int, iterations: int = 20) -> Tensor:
    """Return k-means centres (clusters, D) of ``sample`` (n, D): k-means++, then Lloyd steps; deterministic.

    With fewer vectors than clusters the rest are vectors again, moved a little, so that all codes differ.
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
    """k-means++: the next seed is drawn in proportion to the squared distance to the nearest seed so far."""
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
    """Return the vectors of the real videos of all ranks in global order, identical on every rank."""
    real = gather_counts(is_real.to(torch.int64)).bool()
    return gather_packed(z, counts)[torch.repeat_interleave(real, gather_counts(counts))]


def _usage(used: Tensor) -> dict[str, Tensor]:
    world, _ = world_and_rank()
    share = used / used.sum().clamp(min=1.0)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"perplexity": entropy.exp() / world, "codes_used": (used > 0).sum().float() / world}
