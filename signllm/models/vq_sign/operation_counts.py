"""The floating-point operations of VQ-Sign's parts (counted as in :mod:`signllm.models.operation_counts`)."""

from __future__ import annotations

from collections.abc import Sequence

from signllm.clip_geometry import CLIP_FRAMES, count_clips, count_convolution_outputs
from signllm.models.operation_counts import count_elements, has_trained_weights, linear_operations
from signllm.models.vq_sign.context_predictor import ContextPredictor
from signllm.models.vq_sign.quantizer import Quantizer
from signllm.models.vq_sign.visual_encoder import VisualEncoder


def encoder_operations(encoder: VisualEncoder, frame_counts: Sequence[int], size: tuple[int, int]) -> float:
    """Return the operations of the visual encoder: backbone, temporal convolutions and ``flatten`` layer.

    A temporal convolution from C to C' channels has 45 C C' weights. It is applied at every cell of each
    output.

    Args:
        encoder: the visual encoder.
        frame_counts: number of frames of each video.
        size: height and width of the frames in pixels.
    """
    backbone = encoder.backbone
    cost = backbone.cost(size)
    learns = not encoder.config.freeze_backbone and has_trained_weights(backbone)
    total = sum(frame_counts) * (cost.trained if learns else cost.frozen)
    first = [count_convolution_outputs(max(frames, CLIP_FRAMES)) for frames in frame_counts]
    clips = [count_clips(frames) for frames in frame_counts]
    for convolution, outputs in ((encoder.first, first), (encoder.second, clips)):
        rows = sum(outputs) * cost.cells
        total += linear_operations(
            count_elements(convolution.weight),
            rows,
            is_trained=convolution.weight.requires_grad,
            has_input_gradient=learns,
        )
        learns = learns or convolution.weight.requires_grad
    if encoder.flatten is not None:
        total += linear_operations(
            count_elements(encoder.flatten.weight),
            sum(clips),
            is_trained=encoder.flatten.weight.requires_grad,
            has_input_gradient=learns,
        )
    return total


def quantizer_operations(quantizer: Quantizer, clips: int) -> float:
    """Return the operations of the quantizer, forward and backward.

    They are the distances from every vector to every code (K D weights, forward only). With finite scalar
    quantization they are two projections of every vector; the projection of the codebook, once a step, is not
    counted.
    """
    scalars = quantizer.scalars
    if scalars is None:
        return 2.0 * count_elements(quantizer.codebook) * clips if quantizer.has_codes else 0.0
    weights = count_elements(scalars.encode_weight) + count_elements(scalars.decode_weight)
    return linear_operations(weights, clips, is_trained=has_trained_weights(scalars))


def predictor_operations(predictor: ContextPredictor, clip_counts: Sequence[int]) -> float:
    """Return the operations of the context predictor.

    The GRU runs on every position, and head k on the positions with a target k positions ahead.
    """
    weights = sum(count_elements(p) for name, p in predictor.context.named_parameters() if "weight" in name)
    total = linear_operations(weights, sum(clip_counts), is_trained=has_trained_weights(predictor))
    for ahead, head in enumerate(predictor.heads, start=1):
        rows = sum(max(0, count - ahead) for count in clip_counts)
        total += linear_operations(
            count_elements(head.weight), rows, is_trained=has_trained_weights(predictor)
        )
    return total
