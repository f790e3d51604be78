"""The floating-point operations of a training step, the numerator of the model FLOPs utilization (MFU).

A multiply-add counts as 2 operations. A linear layer or convolution with P weights that is applied n times
costs

- 2 P n in the forward pass,
- 2 P n for the gradient of its input, if a layer before it is trained,
- 2 P n for the gradient of its weights, if it is trained itself.

That is 6 P n in trained parts, 4 P n in the frozen language model and 2 P n in a frozen backbone. Causal
attention of width A over l positions costs 2 A l (l + 1) in the forward pass and twice that in the backward
pass.

Not counted are norms, activations, pooling, word vectors, the losses (negatives, MMD), the optimizer,
padding, and recomputation (``recompute``, ``gradient_checkpointing``). MFU measures the work that the method
needs, and is rather too low than too high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from signllm.models.projector import Projector


def work_counts(
    *, frames: int = 0, clips: int = 0, tokens: int = 0, operations: float = 0.0
) -> dict[str, Tensor]:
    """Return the amounts of work of this rank's forward pass, as entries of a model's output.

    The training loop sums them. They are float64 tensors on the CPU, so that they cost no time on a GPU.

    Args:
        frames: number of frames, including those of videos that only fill up the last batch of an epoch.
        clips: number of clips, and so of characters, counted likewise.
        tokens: number of positions that the language model reads (prompt, sign words and text), without
            padding.
        operations: floating-point operations of the forward and the backward pass.
    """
    values = {"frames": frames, "clips": clips, "tokens": tokens, "operations": operations}
    return {f"count/{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def linear_operations(
    weights: int, rows: float, *, is_trained: bool, has_input_gradient: bool = True
) -> float:
    """Return the operations of a linear layer, 2 P n (1 + is_trained + has_input_gradient).

    Args:
        weights: P, the number of weights.
        rows: n, how often the layer is applied.
        is_trained: whether the gradient of the weights is computed.
        has_input_gradient: whether the gradient of the input is computed.
    """
    return 2.0 * weights * rows * (1 + is_trained + has_input_gradient)


def projector_operations(projector: Projector, rows: int) -> float:
    """Return the operations of both linear layers for ``rows`` words and characters."""
    layers = (projector.first, projector.second)
    return sum(
        linear_operations(count_elements(layer.weight), rows, is_trained=layer.weight.requires_grad)
        for layer in layers
    )


class LanguageModelCost(NamedTuple):
    """The properties of a language model that determine its operations.

    Attributes:
        frozen: number of frozen weights in matrices.
        trained: number of trained weights in matrices, those of adapters.
        attention: width of the attention times the number of layers.
    """

    frozen: int
    trained: int
    attention: int

    def operations(self, lengths: Sequence[int]) -> float:
        """Return the operations for rows of these lengths, in positions."""
        places = sum(lengths)
        attended = 3.0 * sum(2.0 * self.attention * length * (length + 1) for length in lengths)
        return (
            linear_operations(self.frozen, places, is_trained=False)
            + linear_operations(self.trained, places, is_trained=True)
            + attended
        )


class EncoderDecoderCost(NamedTuple):
    """The properties of an encoder-decoder language model that determine its operations.

    Attributes:
        encoder: properties of the encoder, which every position of the input passes.
        decoder: properties of the decoder, including its attention to the encoder and the output layer; every
            position of the text passes it.
    """

    encoder: LanguageModelCost
    decoder: LanguageModelCost

    def operations(self, read: Sequence[int], written: Sequence[int]) -> float:
        """Return the operations for a batch of videos.

        The attention of the encoder is bidirectional and costs twice as much as causal attention. The
        attention of w positions of the decoder to r positions of the encoder costs 4 A r w in the forward
        pass and twice that in the backward pass. Its keys and values are counted for the decoder's positions,
        so that the sum is rather too low than too high.

        Args:
            read: number of positions of the encoder for each video.
            written: number of positions of the decoder for each video.
        """
        both_ways = 3.0 * sum(2.0 * self.encoder.attention * length * (length - 1) for length in read)
        across = 3.0 * sum(4.0 * self.decoder.attention * r * w for r, w in zip(read, written, strict=True))
        return self.encoder.operations(read) + both_ways + self.decoder.operations(written) + across


def encoder_decoder_cost(model: nn.Module) -> EncoderDecoderCost:
    """Return the cost of an encoder-decoder; the output layer counts as part of the decoder."""
    full_model: Any = model
    encoder = language_model_cost(full_model.get_encoder())
    total = language_model_cost(model)
    config: Any = model.config
    layers: Any = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", 0)
    decoder = LanguageModelCost(
        total.frozen - encoder.frozen,
        total.trained - encoder.trained,
        _attention_width(config) * layers,
    )
    return EncoderDecoderCost(encoder, decoder)


def _attention_width(config: Any) -> int:
    """Return the number of attention heads times their width."""
    heads = int(getattr(config, "num_attention_heads", 0))
    head_width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return heads * int(head_width or getattr(config, "hidden_size", 0) // max(1, heads))


def language_model_cost(model: nn.Module) -> LanguageModelCost:
    """Return the cost of a causal language model, which may be partitioned by ZeRO-3.

    All weight matrices count except embedding tables. The output layer counts even if it shares its weights
    with the token embeddings.
    """
    weights = {True: 0, False: 0}
    for part in model.modules():
        if not isinstance(part, nn.Embedding):
            for weight in part.parameters(recurse=False):
                if len(getattr(weight, "ds_shape", weight.shape)) == 2:
                    weights[weight.requires_grad] += count_elements(weight)
    config: Any = model.config
    width = _attention_width(config) * getattr(config, "num_hidden_layers", 0)
    return LanguageModelCost(weights[False], weights[True], width)


def count_elements(tensor: Any) -> int:
    """Return the number of elements of a tensor that may be partitioned by ZeRO-3 or quantized to 4 bits."""
    state = getattr(tensor, "quant_state", None)  # bitsandbytes packs two elements of 4 bits into a byte
    if state is not None:
        return math.prod(state.shape)
    return int(getattr(tensor, "ds_numel", tensor.numel()))


def has_trained_weights(part: nn.Module) -> bool:
    """Return whether any weight of a part is trained."""
    return any(parameter.requires_grad for parameter in part.parameters())
