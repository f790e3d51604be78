"""VQ-Sign: video to characters, learnt from video alone (paper section 3.2): L_VQ = L_cp + L_q.

Encoder, quantiser and context predictor in one module, so that one DeepSpeed engine holds them; stage 3
trains it further.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from signllm.errors import UsageError
from signllm.models.context_predictor import ContextPredictor, ContextPredictorConfig
from signllm.models.operation_counts import (
    encoder_operations,
    predictor_operations,
    quantizer_operations,
    work_counts,
)
from signllm.models.quantizer import Quantized, Quantizer, QuantizerConfig, gather_sample
from signllm.models.visual_encoder import VisualEncoder, VisualEncoderConfig

if TYPE_CHECKING:
    from signllm.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class VQSignConfig:
    """The three parts, and the weights of L_cp and L_q in L_VQ (paper: 1 each)."""

    encoder: VisualEncoderConfig = field(default_factory=VisualEncoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    predictor: ContextPredictorConfig = field(default_factory=ContextPredictorConfig)
    context_weight: float = 1.0
    quantizer_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("context_weight", "quantizer_weight"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}", where="vq_sign", remedy="give 0 or more")


@dataclass(frozen=True)
class EncodedVideos:
    """A batch as characters: ``z`` (n, D) continuous, ``quantized``, ``counts`` (B,) of each video."""

    z: Tensor
    quantized: Quantized
    counts: Tensor


class VQSign(nn.Module):
    """Video to characters; ``forward`` gives the losses of stage 1."""

    def __init__(self, config: VQSignConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisualEncoder(config.encoder)
        self.quantizer = Quantizer(config.quantizer, config.encoder.width)
        self.predictor = ContextPredictor(config.predictor, config.encoder.width)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return shares: ``loss`` (L_VQ) first, then ``l_cp``, ``l_q``, metrics, and counts in training."""
        encoded = self.quantize(batch)
        losses = self.losses(encoded, batch)
        shares = {"loss": losses.pop("l_vq"), **{name: value.detach() for name, value in losses.items()}}
        if self.training:
            operations = self.operations(encoded, batch)
            shares |= work_counts(frames=len(batch.frames), clips=len(encoded.z), operations=operations)
        return shares

    def operations(self, encoded: EncodedVideos, batch: Batch) -> float:
        """Return the floating-point operations of this rank's forward and backward pass."""
        assert batch.frames is not None
        size = (batch.frames.shape[2], batch.frames.shape[3])
        return (
            encoder_operations(self.encoder, batch.frame_counts.tolist(), size)
            + quantizer_operations(self.quantizer, len(encoded.z))
            + predictor_operations(self.predictor, encoded.counts.tolist())
        )

    def quantize(self, batch: Batch) -> EncodedVideos:
        """Encode and quantise the frames of a batch, with gradient."""
        if batch.frames is None:
            raise UsageError("this batch has no frames", remedy="VQ-Sign is trained on video")
        z, counts = self.encoder(batch.frames, batch.frame_counts)
        return EncodedVideos(z, self.quantizer(z, counts, batch.is_real), counts)

    def losses(self, encoded: EncodedVideos, batch: Batch) -> dict[str, Tensor]:
        """Return shares of ``l_vq``, ``l_cp``, ``l_q`` and the metrics of the quantiser and the predictor."""
        quantized = encoded.quantized
        predicted = self.predictor(quantized.vectors, encoded.z, encoded.counts, batch)
        l_vq = self.config.context_weight * predicted["l_cp"] + self.config.quantizer_weight * quantized.loss
        return {
            "l_vq": l_vq,
            "l_cp": predicted.pop("l_cp"),
            "l_q": quantized.loss,
            **predicted,
            **quantized.metrics,
        }

    @torch.no_grad()
    def encode(self, frames: Tensor, frame_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the characters (sum N,) int64 of packed videos and their counts (B,); changes nothing."""
        z, counts = self.encoder(frames, frame_counts)
        return self.quantizer(z, counts).index, counts

    @torch.no_grad()
    def start(self, batches: Iterable[Batch]) -> None:
        """Give the codebook its k-means start from the first batches (all ranks, before the engine)."""
        sample = []
        for _, batch in zip(range(self.config.quantizer.kmeans_batches), batches, strict=False):
            pooled, counts = self.encoder.pool(batch.frames, batch.frame_counts)
            sample.append(gather_sample(pooled, counts, batch.is_real))
        if not sample:
            raise UsageError("the k-means start found no video", remedy="check that the split has samples")
        pooled = torch.cat(sample)
        if self.config.encoder.whitened_start:
            self.encoder.whiten(pooled)
        self.quantizer.start(self.encoder.project(pooled))


def fingerprinted_tensor(weights: Mapping[str, Tensor], config: VQSignConfig) -> Tensor:
    """Return the weights whose fingerprint names what an encoder reads: words and recordings belong to it.

    The codebook, which moves whenever the encoder learns; without codes the encoder's last convolution.
    """
    has_codes = config.quantizer.update != "none"
    return weights["quantizer.codebook" if has_codes else "encoder.second.weight"]


def build_vq_sign(config: VQSignConfig) -> VQSign:
    """Build VQ-Sign; random weights come from torch's global generator, which the stage seeds."""
    return VQSign(config)
