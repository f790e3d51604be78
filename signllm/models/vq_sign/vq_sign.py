"""VQ-Sign: the model that turns a video into discrete sign codes ("characters"), paper section 3.2.

It consists of the visual encoder, the quantizer and the context predictor and learns from video alone, with
the loss L_VQ = L_cp + L_q. The three parts are one module because a DeepSpeed engine wraps one module. Stage
1 (``pretrain``) trains it; stage 3 (``finetune``) trains it further.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from signllm.errors import UsageError
from signllm.models.operation_counts import work_counts
from signllm.models.vq_sign.context_predictor import ContextPredictor, ContextPredictorConfig
from signllm.models.vq_sign.operation_counts import (
    encoder_operations,
    predictor_operations,
    quantizer_operations,
)
from signllm.models.vq_sign.quantizer import Quantized, Quantizer, QuantizerConfig, gather_sample
from signllm.models.vq_sign.visual_encoder import VisualEncoder, VisualEncoderConfig
from signllm.validation import NonNegativeFloat, validated

if TYPE_CHECKING:
    from signllm.data.loading.batch import Batch


@validated
class VQSignConfig:
    """Configuration of VQ-Sign.

    Attributes:
        encoder: configuration of the visual encoder.
        quantizer: configuration of the quantizer.
        predictor: configuration of the context predictor.
        context_weight: weight of L_cp in L_VQ (paper: 1).
        quantizer_weight: weight of L_q in L_VQ (paper: 1).
    """

    encoder: VisualEncoderConfig = field(default_factory=VisualEncoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    predictor: ContextPredictorConfig = field(default_factory=ContextPredictorConfig)
    context_weight: NonNegativeFloat = 1.0
    quantizer_weight: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class EncodedVideos:
    """The sign codes of a batch of videos.

    Attributes:
        z: (n, D) continuous vectors of the encoder, packed.
        quantized: the quantizer's output for ``z``.
        counts: (B,) number of clips, and so of characters, of each video.
    """

    z: Tensor
    quantized: Quantized
    counts: Tensor


class VQSign(nn.Module):
    """Encoder, quantizer and context predictor; ``forward`` returns the losses of stage 1.

    Attributes:
        saved_when_frozen: whether checkpoints contain the weights although they are frozen.
    """

    saved_when_frozen: bool = False

    def __init__(self, config: VQSignConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisualEncoder(config.encoder)
        self.quantizer = Quantizer(config.quantizer, config.encoder.width)
        self.predictor = ContextPredictor(config.predictor, config.encoder.width)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return this rank's shares of the loss and the metrics (see :mod:`signllm.models`).

        The keys are ``loss`` (L_VQ), ``l_cp``, ``l_q``, the metrics of the quantizer and of the predictor,
        and in training mode the counts of :func:`~signllm.models.operation_counts.work_counts`.
        """
        encoded = self.quantize(batch)
        losses = self.losses(encoded, batch)
        shares = {"loss": losses.pop("l_vq"), **{name: value.detach() for name, value in losses.items()}}
        if self.training:
            assert batch.frames is not None
            operations = self.operations(encoded, batch)
            shares |= work_counts(frames=len(batch.frames), clips=len(encoded.z), operations=operations)
        return shares

    def operations(self, encoded: EncodedVideos, batch: Batch) -> float:
        """Return the floating-point operations of this rank's forward and backward pass over a batch."""
        assert batch.frames is not None
        size = (batch.frames.shape[2], batch.frames.shape[3])
        return (
            encoder_operations(self.encoder, batch.frame_counts.tolist(), size)
            + quantizer_operations(self.quantizer, len(encoded.z))
            + predictor_operations(self.predictor, encoded.counts.tolist())
        )

    def quantize(self, batch: Batch) -> EncodedVideos:
        """Encode and quantize the frames of a batch, with gradients."""
        if batch.frames is None:
            raise UsageError(
                "this batch has no frames",
                remedy="VQ-Sign is trained on video: give shards with videos",
            )
        z, counts = self.encoder(batch.frames, batch.frame_counts)
        return EncodedVideos(z, self.quantizer(z, counts, batch.is_real), counts)

    def losses(self, encoded: EncodedVideos, batch: Batch) -> dict[str, Tensor]:
        """Return this rank's shares of ``l_vq``, ``l_cp``, ``l_q`` and of the metrics of both parts."""
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
        """Return the characters (sum N,), int64, of packed videos and their number per video (B,).

        Neither the codebook nor its statistics change if the model is in evaluation mode.
        """
        z, counts = self.encoder(frames, frame_counts)
        return self.quantizer(z, counts).index, counts

    @torch.no_grad()
    def initialize_codebook(self, batches: Iterable[Batch]) -> None:
        """Initialize the codebook by k-means on the first batches of the training data.

        Every rank must call this, before the model is wrapped by the DeepSpeed engine.

        Raises:
            UsageError: there is no batch.
        """
        sample = []
        for _, batch in zip(range(self.config.quantizer.kmeans_batches), batches, strict=False):
            assert batch.frames is not None
            pooled, counts = self.encoder.pool(batch.frames, batch.frame_counts)
            sample.append(gather_sample(pooled, counts, batch.is_real))
        if not sample:
            raise UsageError(
                "there is no video to initialize the codebook from (quantizer.kmeans_start)",
                remedy="check that the training split has samples",
            )
        pooled = torch.cat(sample)
        if self.config.encoder.whitened_start:
            self.encoder.whiten(pooled)
        self.quantizer.start(self.encoder.project(pooled))


def fingerprinted_tensor(weights: Mapping[str, Tensor], config: VQSignConfig) -> Tensor:
    """Return the tensor whose fingerprint identifies an encoder.

    Words that were composed and characters that were recorded with one encoder cannot be used with another;
    their files record this fingerprint. The tensor is the codebook, which changes whenever the encoder
    learns. Without codes (``quantizer.update`` is "none") it is the weight of the encoder's last convolution.

    Args:
        weights: state dict of a :class:`VQSign`.
        config: its configuration.
    """
    has_codes = config.quantizer.update != "none"
    return weights["quantizer.codebook" if has_codes else "encoder.second.weight"]


def build_vq_sign(config: VQSignConfig) -> VQSign:
    """Build VQ-Sign with random weights from torch's global generator, which the stage has seeded."""
    return VQSign(config)
