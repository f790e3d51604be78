"""The image backbone of the visual encoder: one feature map per frame, from any ``transformers`` image model.

Frames of all videos of a batch go through it at once, so nothing in it may mix frames: pretrained BatchNorm
keeps its statistics, a randomly initialised ResNet gets GroupNorm. The paper uses ResNet-18 trained on
ImageNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.errors import UsageError
from signllm.models.operation_counts import FrameCost, frame_cost

SHORT_NAMES = {
    "resnet18": "microsoft/resnet-18",
    "resnet50": "microsoft/resnet-50",
    "dinov2-small": "facebook/dinov2-small",
}
MAX_GROUPS = 8
_NO_SHAPE = (
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "model_type", "out_features",
    "out_indices", "stage_names", "transformers_version",
)  # fmt: skip


class FixedStatisticsBatchNorm(nn.BatchNorm2d):
    """BatchNorm that computes with the statistics it was trained with; scale and shift learn.

    It is torch's in evaluation mode but for 16 bits: DeepSpeed then casts parameters and leaves statistics in
    32, a mixture that torch refuses. Here all four have 32, and the frames 16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised maps (F, C, h, w), in their own type."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (tensor.to(dtype) for tensor in tensors if tensor is not None)
        return functional.batch_norm(input, mean, var, weight, bias, eps=self.eps)


class GroupNorm(nn.GroupNorm):
    """GroupNorm that is fast on the CPU for maps whose channels come last.

    torch's own needs 7.6 ms for 180 maps of 16 x 24 x 24 in that order and 0.5 ms with the channels first: it
    was half of the time of the demo's backbone. Two copies cost less, except for the smallest maps.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised maps (F, C, h, w), in the same order in memory."""
        is_last = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
        if input.device.type != "cpu" or not is_last or input.shape[2] * input.shape[3] < 64:
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """A ``transformers`` image model as a function from frames to feature maps.

    Args:
        model: what ``AutoModel`` gives: its ``last_hidden_state`` is a map (F, C, h, w) or tokens (F, special
            + h * w, C).
    """

    saved_when_frozen = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = subsample_before_pointwise(_swapped(model, _at_rest))
        config: Any = model.config
        if not hasattr(config, "hidden_sizes") and not hasattr(config, "hidden_size"):
            raise UsageError(
                "the number of channels of the image backbone's last map is not in its configuration",
                where=f"encoder.backbone, a {config.model_type}",
                remedy="write hidden_size into its config.json, or into encoder.backbone_config",
            )
        self.channels = int(
            config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
        )
        self.patch = getattr(config, "patch_size", None)
        self._costs: dict[tuple[int, int], FrameCost] = {}

    def forward(self, frames: Tensor) -> Tensor:
        """Return the feature maps (F, C, h, w) of frames (F, 3, H, W), normalised floats."""
        features = self.model(pixel_values=frames).last_hidden_state
        if features.ndim == 4:
            return features
        rows, columns = frames.shape[2] // self.patch, frames.shape[3] // self.patch
        patches_FPC = features[:, features.shape[1] - rows * columns :]
        return patches_FPC.transpose(1, 2).unflatten(2, (rows, columns))

    def cost(self, size: tuple[int, int]) -> FrameCost:
        """Return what a frame of ``size`` (height, width) costs; counted once for each size."""
        if size not in self._costs:
            self._costs[size] = frame_cost(self.model, size)
        return self._costs[size]


def build_backbone(
    name: str,
    *,
    random: Mapping[str, Any] | None = None,
    shape: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> Backbone:
    """Load a pretrained backbone, or initialise one at random.

    Args:
        name: a short name (``resnet18``), a local folder, or a name on the Hugging Face hub; not read when
            ``random`` or ``shape`` is given.
        random: settings of a randomly initialised model: ``model_type`` (default ``resnet``) and fields of
            its configuration.
        shape: of a pretrained model, as :func:`backbone_settings` returns it: built for weights that come
            later.
        weights: a safetensors file with the weights of a backbone of this shape, laid over the initial ones.

    Raises:
        UsageError: no such model, unknown settings, or weights that do not fit.
    """
    if random is not None:
        model = replace_batch_norm(_of_settings(random))
    else:
        model = _pretrained(name) if shape is None else _of_settings(shape)
    backbone = Backbone(model)
    if weights is not None:
        _load_weights(backbone, Path(weights))
    return backbone


def backbone_settings(name: str) -> dict[str, Any]:
    """Return the settings that a pretrained backbone is built from, for a run that is to need it no more.

    Raises:
        UsageError: no such model.
    """
    from transformers import AutoConfig

    with _told(name):
        config = AutoConfig.from_pretrained(SHORT_NAMES.get(name, name))
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in _NO_SHAPE}
    return {"model_type": config.model_type, **settings}


def replace_batch_norm(module: nn.Module) -> nn.Module:
    """Put GroupNorm (at most 8 groups) in the place of every BatchNorm2d, in place; return the module."""
    return _swapped(module, lambda norm: group_norm(norm.num_features))


def subsample_before_pointwise(module: nn.Module) -> nn.Module:
    """Let every strided 1x1 convolution drop the skipped pixels first and convolve with stride 1, in place.

    The result is the same: such a convolution never reads the pixels in between. It is needed because oneDNN
    3.12 (torch 2.13) writes beyond its buffer in the backward pass of a 1x1 convolution with stride 2, 2 to 7
    input channels and ``channels_last`` input on processors without AVX-512, which corrupts the heap. With
    stride 1 that code is not reached, whatever the channels, the memory format, the type and the processor.
    """
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d) and set(convolution.kernel_size) == {1}:
            stride = tuple(convolution.stride)
            if set(stride) != {1} and convolution.padding in ("valid", 0, (0, 0)):
                convolution.stride = (1, 1)
                convolution.register_forward_pre_hook(partial(_subsample, stride))
    return module


def _subsample(stride: tuple[int, int], _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # A mean over one pixel is that pixel. Unlike slicing, this keeps channels_last in the gradient too.
    return (functional.avg_pool2d(inputs[0], 1, stride), *inputs[1:])


def _swapped(module: nn.Module, other: Callable[[nn.BatchNorm2d], nn.Module]) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, other(child))
        else:
            _swapped(child, other)
    return module


def _at_rest(norm: nn.BatchNorm2d) -> FixedStatisticsBatchNorm:
    resting = FixedStatisticsBatchNorm(norm.num_features, eps=norm.eps)
    resting.load_state_dict(norm.state_dict())
    return resting


def group_norm(channels: int) -> GroupNorm:
    """Return a GroupNorm with the largest number of groups up to 8 that divides ``channels``."""
    return GroupNorm(next(groups for groups in range(MAX_GROUPS, 0, -1) if channels % groups == 0), channels)


def _pretrained(name: str) -> nn.Module:
    from transformers import AutoModel

    with _told(name):
        model: nn.Module = AutoModel.from_pretrained(SHORT_NAMES.get(name, name), dtype=torch.float32)
    return model


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise UsageError(
            f"the image backbone cannot be loaded: {first_line}",
            where=f"encoder.backbone = {name}",
            remedy="give a folder with an image model, or encoder.backbone_config for a random one",
        ) from None


def _of_settings(settings: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    fields = dict(settings)
    model_type = fields.pop("model_type", "resnet")
    try:
        model: nn.Module = AutoModel.from_config(AutoConfig.for_model(model_type, **fields))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UsageError(
            f"no image backbone can be built from these settings: {str(error).splitlines()[0]}",
            where=f"encoder.backbone_config = {dict(settings)}",
            remedy="give fields of the transformers configuration of that model_type",
        ) from None
    return model


def _load_weights(backbone: Backbone, path: Path) -> None:
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError("there are no backbone weights", where=path, remedy="give a safetensors file")
    try:
        backbone.load_state_dict(load_file(path))
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the backbone weights do not fit: {' '.join(str(error).split())[:200]}",
            where=path,
            remedy="give weights of the same encoder.backbone and backbone_config",
        ) from None
