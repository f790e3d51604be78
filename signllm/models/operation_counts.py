"""Floating-point operations of a training step, counted here for every part: the numerator of MFU.

A multiply-add is 2. A linear map or convolution of P weights, applied n times, costs 2 P n forward, 2 P n
for the gradient of its input if anything before it learns, 2 P n for that of its weights if it learns itself:
6 P n inside what is trained, 4 P n in the frozen language model, 2 P n in a frozen backbone. Causal attention
of width A over l places costs 2 A l (l + 1) forward and twice that backward; it has no weights to freeze.

Left out, so that MFU is rather too low than too high: norms, activations, pooling, word vectors, the losses
(negatives, MMD), the optimizer, padding, and what is computed a second time (``recompute``,
``gradient_checkpointing``): MFU tells what the method needs, not what the machine was made to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from signllm.clip_geometry import CLIP_FRAMES, count_clips, count_convolution_outputs

if TYPE_CHECKING:
    from signllm.models.context_predictor import ContextPredictor
    from signllm.models.projector import Projector
    from signllm.models.quantizer import Quantizer
    from signllm.models.visual_encoder import VisualEncoder


def work_counts(
    *, frames: int = 0, clips: int = 0, tokens: int = 0, operations: float = 0.0
) -> dict[str, Tensor]:
    """Return what a forward pass of this rank worked on, as the loop reads it beside the losses.

    ``frames`` and ``clips`` (characters) include the videos that fill up an epoch's last batch; ``tokens``
    are the places that the language model reads: prompt, sign words and text, without padding. float64, on
    the CPU: they cost the GPU nothing.
    """
    values = {"frames": frames, "clips": clips, "tokens": tokens, "operations": operations}
    return {f"count/{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def linear(weights: int, rows: float, *, learns: bool, passes: bool = True) -> float:
    """Return 2 P n (1 + learns + passes), see the module's head; ``passes``: its input has a gradient."""
    return 2.0 * weights * rows * (1 + learns + passes)


class FrameCost(NamedTuple):
    """What a backbone costs per frame: operations with and without backward, and its map's cells h * w."""

    trained: float
    frozen: float
    cells: int


def frame_cost(model: nn.Module, size: tuple[int, int]) -> FrameCost:
    """Count a ``transformers`` image model on a frame: a twin without weights, on torch's meta device.

    torch's own counter sees every convolution, product and attention of any architecture; the first layer's
    input, the pixels, needs no gradient.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        twin: nn.Module = type(model)(model.config).eval()  # a map of one cell has no statistics of its own
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            features: Tensor = twin(pixel_values=torch.empty(1, 3, *size)).last_hidden_state
            forward = counter.get_total_flops()
            features.sum().backward()
    patch = getattr(model.config, "patch_size", None)
    cells = features[0, 0].numel() if features.ndim == 4 else (size[0] // patch) * (size[1] // patch)
    return FrameCost(float(counter.get_total_flops()), float(forward), cells)


def encoder_operations(encoder: VisualEncoder, frame_counts: Sequence[int], size: tuple[int, int]) -> float:
    """Return backbone on every frame, both temporal convolutions, and the linear layer of ``flatten``.

    A temporal convolution of C to C' channels has 45 C C' weights and is applied at every cell of every
    second frame: floor((max(T, 13) - 5) / 2) + 1 of a video's T frames, then N.
    """
    backbone = encoder.backbone
    cost = backbone.cost(size)
    learns = not encoder.config.freeze_backbone and _learns(backbone)
    total = sum(frame_counts) * (cost.trained if learns else cost.frozen)
    first = [count_convolution_outputs(max(frames, CLIP_FRAMES)) for frames in frame_counts]
    clips = [count_clips(frames) for frames in frame_counts]
    for convolution, outputs in ((encoder.first, first), (encoder.second, clips)):
        rows = sum(outputs) * cost.cells
        total += linear(
            _elements(convolution.weight), rows, learns=convolution.weight.requires_grad, passes=learns
        )
        learns = learns or convolution.weight.requires_grad
    if encoder.flatten is not None:
        total += linear(
            _elements(encoder.flatten.weight),
            sum(clips),
            learns=encoder.flatten.weight.requires_grad,
            passes=learns,
        )
    return total


def quantizer_operations(quantizer: Quantizer, clips: int) -> float:
    """Return the distances of every vector to every code: K D weights, forward only."""
    return 2.0 * _elements(quantizer.codebook) * clips if quantizer.has_codes else 0.0


def predictor_operations(predictor: ContextPredictor, clip_counts: Sequence[int]) -> float:
    """Return the GRU on every position and head k on those that have a target k places ahead."""
    weights = sum(_elements(p) for name, p in predictor.context.named_parameters() if "weight" in name)
    total = linear(weights, sum(clip_counts), learns=_learns(predictor))
    for ahead, head in enumerate(predictor.heads, start=1):
        rows = sum(max(0, count - ahead) for count in clip_counts)
        total += linear(_elements(head.weight), rows, learns=_learns(predictor))
    return total


def projector_operations(projector: Projector, rows: int) -> float:
    """Return both linear layers on every word and every character."""
    layers = (projector.first, projector.second)
    return sum(linear(_elements(layer.weight), rows, learns=layer.weight.requires_grad) for layer in layers)


class LanguageModelCost(NamedTuple):
    """What a language model's operations follow from: weights, and width x layers of attention."""

    frozen: int
    trained: int
    attention: int

    def operations(self, lengths: Sequence[int]) -> float:
        """Return the operations on rows of these lengths: 4 per frozen weight and place, 6 per trained."""
        places = sum(lengths)
        attended = 3.0 * sum(2.0 * self.attention * length * (length + 1) for length in lengths)
        return (
            linear(self.frozen, places, learns=False) + linear(self.trained, places, learns=True) + attended
        )


class EncoderDecoderCost(NamedTuple):
    """The same of an encoder-decoder; its decoder's attention to the encoder has weights of its own.

    Attributes:
        encoder: what every place that the encoder reads goes through.
        decoder: what every place that the decoder reads goes through.
    """

    encoder: LanguageModelCost
    decoder: LanguageModelCost

    def operations(self, read: Sequence[int], written: Sequence[int]) -> float:
        """Return the operations on videos of which the encoder reads and the decoder writes so many places.

        The encoder's attention looks both ways: twice the causal one. The decoder looks at every place that
        the encoder read: 4 A r w forward and twice that backward. Keys and values of what the encoder read
        count with the decoder's places, so that the sum is rather too low than too high.
        """
        both_ways = 3.0 * sum(2.0 * self.encoder.attention * length * (length - 1) for length in read)
        across = 3.0 * sum(4.0 * self.decoder.attention * r * w for r, w in zip(read, written, strict=True))
        return self.encoder.operations(read) + both_ways + self.decoder.operations(written) + across


def encoder_decoder_cost(model: nn.Module) -> EncoderDecoderCost:
    """Read off an encoder-decoder; the output layer counts with the decoder."""
    whole: Any = model
    encoder = whole.get_encoder()
    of_encoder = language_model_cost(encoder)
    everything = language_model_cost(model)
    config: Any = model.config
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", 0)
    decoder = LanguageModelCost(
        everything.frozen - of_encoder.frozen,
        everything.trained - of_encoder.trained,
        _attention_width(config) * layers,
    )
    return EncoderDecoderCost(of_encoder, decoder)


def _attention_width(config: Any) -> int:
    heads = int(getattr(config, "num_attention_heads", 0))
    own = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return heads * int(own or getattr(config, "hidden_size", 0) // max(1, heads))


def language_model_cost(model: nn.Module) -> LanguageModelCost:
    """Read off a causal language model, partitioned or not: every weight matrix that is not a look-up table.

    The output layer counts, also where it shares its weights with the token embeddings.
    """
    weights = {True: 0, False: 0}
    for part in model.modules():
        if not isinstance(part, nn.Embedding):
            for weight in part.parameters(recurse=False):
                if len(getattr(weight, "ds_shape", weight.shape)) == 2:
                    weights[weight.requires_grad] += _elements(weight)
    config: Any = model.config
    width = _attention_width(config) * getattr(config, "num_hidden_layers", 0)
    return LanguageModelCost(weights[False], weights[True], width)


def _elements(tensor: Any) -> int:
    """Return the elements of a tensor, also of one that ZeRO-3 has cut or that packs two into a byte."""
    state = getattr(tensor, "quant_state", None)  # of bitsandbytes, in 4 bits
    if state is not None:
        return math.prod(state.shape)
    return int(getattr(tensor, "ds_numel", tensor.numel()))


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
