"""The image backbone of the visual encoder: any ``transformers`` image model, applied to every frame.

Frames of different videos go through the backbone in one batch, so no layer may combine frames: BatchNorm
layers of a pretrained model keep their statistics, and a randomly initialized model has GroupNorm instead.
The paper uses ResNet-18 trained on ImageNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.errors import UsageError

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


class FrameCost(NamedTuple):
    """The cost of a backbone per frame.

    Attributes:
        trained: operations of the forward and the backward pass.
        frozen: operations of the forward pass.
        cells: number of cells h * w of the feature map.
    """

    trained: float
    frozen: float
    cells: int


def frame_cost(model: nn.Module, size: tuple[int, int]) -> FrameCost:
    """Return the cost of a ``transformers`` image model for a frame of ``size`` (height, width) in pixels.

    A copy of the model without weights runs on torch's meta device, under torch's own counter, which knows
    the convolutions, matrix products and attention of any architecture. The pixels need no gradient.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        # In evaluation mode: BatchNorm in training mode refuses a map with a single cell.
        copy: nn.Module = type(model)(model.config).eval()
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            features: Tensor = copy(pixel_values=torch.empty(1, 3, *size)).last_hidden_state
            forward = counter.get_total_flops()
            features.sum().backward()
    patch: Any = getattr(model.config, "patch_size", None)
    cells = features[0, 0].numel() if features.ndim == 4 else (size[0] // patch) * (size[1] // patch)
    return FrameCost(float(counter.get_total_flops()), float(forward), cells)


class FixedStatisticsBatchNorm(nn.BatchNorm2d):
    """BatchNorm that always normalizes with its pretrained statistics; its scale and shift are trained.

    It equals torch's BatchNorm in evaluation mode, and it also works in 16 bits: DeepSpeed casts the
    parameters but leaves the statistics in 32 bits, a mixture that torch refuses. Here all four tensors are
    converted to 32 bits while the frames have 16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized maps (F, C, h, w), in the dtype of the input."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (tensor.to(dtype) for tensor in tensors if tensor is not None)
        return functional.batch_norm(input, mean, var, weight, bias, eps=self.eps)


class GroupNorm(nn.GroupNorm):
    """GroupNorm that is fast on a CPU for maps in the ``channels_last`` memory format.

    torch's own implementation takes 7.6 ms for 180 maps of 16 x 24 x 24 in this format and 0.5 ms in the
    default format; it took half of the time of the demo's backbone. Converting the maps there and back is
    faster, except for the smallest maps.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized maps (F, C, h, w), in the memory format of the input."""
        is_last = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
        if input.device.type != "cpu" or not is_last or input.shape[2] * input.shape[3] < 64:
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """A ``transformers`` image model that computes a feature map per frame.

    Args:
        model: image model of ``AutoModel``. Its ``last_hidden_state`` is a map (F, C, h, w), or tokens (F,
            special + h * w, C), where ``special`` is the number of tokens that are not patches.

    Attributes:
        channels: number of channels C of the feature maps.
        saved_when_frozen: whether checkpoints contain the weights although they are frozen.
    """

    saved_when_frozen = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = subsample_before_pointwise(_replace_batch_norms(model, _fix_statistics))
        config: Any = model.config
        if not hasattr(config, "hidden_sizes") and not hasattr(config, "hidden_size"):
            raise UsageError(
                "the configuration of the image backbone does not state the channels of its last map",
                where=f"encoder.backbone, a {config.model_type}",
                remedy="write hidden_size into its config.json, or into encoder.backbone_config",
            )
        self.channels = int(
            config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
        )
        self.patch: Any = getattr(config, "patch_size", None)
        self._costs: dict[tuple[int, int], FrameCost] = {}

    def forward(self, frames: Tensor) -> Tensor:
        """Return the feature maps (F, C, h, w) of normalized frames (F, 3, H, W)."""
        features = self.model(pixel_values=frames).last_hidden_state
        if features.ndim == 4:
            return features
        rows, columns = frames.shape[2] // self.patch, frames.shape[3] // self.patch
        patches_FPC = features[:, features.shape[1] - rows * columns :]
        return patches_FPC.transpose(1, 2).unflatten(2, (rows, columns))

    def cost(self, size: tuple[int, int]) -> FrameCost:
        """Return the operations for a frame of ``size`` (height, width); they are counted once per size."""
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
    """Load a pretrained backbone, or build one with random weights.

    Args:
        name: short name (``resnet18``), local folder, or name on the Hugging Face hub; ignored if ``random``
            or ``shape`` is given.
        random: settings of a randomly initialized model: ``model_type`` (default ``resnet``) and the fields
            of its ``transformers`` configuration.
        shape: settings of a pretrained model from :func:`backbone_settings`; its weights are loaded later.
        weights: safetensors file with weights of a backbone of this shape, which replace the initial ones.

    Raises:
        UsageError: there is no such model, settings are unknown, or the weights do not fit.
    """
    if random is not None:
        model = replace_batch_norm(_build_from_settings(random))
    else:
        model = _load_pretrained(name) if shape is None else _build_from_settings(shape)
    backbone = Backbone(model)
    if weights is not None:
        _load_weights(backbone, Path(weights))
    return backbone


def backbone_settings(name: str) -> dict[str, Any]:
    """Return the settings from which a pretrained backbone can be built without its folder.

    A run records them; its checkpoints contain the weights.

    Raises:
        UsageError: there is no such model.
    """
    from transformers import AutoConfig

    with _report_loading_errors(name):
        config = AutoConfig.from_pretrained(SHORT_NAMES.get(name, name))
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in _NO_SHAPE}
    return {"model_type": config.model_type, **settings}


def replace_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d of a module by GroupNorm with at most 8 groups; return the module."""
    return _replace_batch_norms(module, lambda norm: group_norm(norm.num_features))


def subsample_before_pointwise(module: nn.Module) -> nn.Module:
    """Change every strided 1x1 convolution of a module to subsample its input and convolve with stride 1.

    The result is equal, because such a convolution never reads the pixels in between. The reason is a bug of
    oneDNN 3.12 (torch 2.13): the backward pass of a 1x1 convolution with stride 2, 2 to 7 input channels and
    ``channels_last`` input writes beyond its buffer on processors without AVX-512, which corrupts the heap.
    With stride 1 that code is not used.

    Returns:
        the module, changed in place.
    """
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d) and set(convolution.kernel_size) == {1}:
            rows, columns = convolution.stride
            if (rows, columns) != (1, 1) and convolution.padding in ("valid", 0, (0, 0)):
                convolution.stride = (1, 1)
                convolution.register_forward_pre_hook(partial(_subsample, (rows, columns)))
    return module


def _subsample(stride: tuple[int, int], _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # The mean of one pixel is that pixel. Unlike slicing, this keeps the gradient in channels_last as well.
    return (functional.avg_pool2d(inputs[0], 1, stride), *inputs[1:])


def _replace_batch_norms(module: nn.Module, replacement: Callable[[nn.BatchNorm2d], nn.Module]) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, replacement(child))
        else:
            _replace_batch_norms(child, replacement)
    return module


def _fix_statistics(norm: nn.BatchNorm2d) -> FixedStatisticsBatchNorm:
    fixed = FixedStatisticsBatchNorm(norm.num_features, eps=norm.eps)
    fixed.load_state_dict(norm.state_dict())
    return fixed


def group_norm(channels: int) -> GroupNorm:
    """Return a GroupNorm with the largest number of groups up to 8 that divides ``channels``."""
    return GroupNorm(next(groups for groups in range(MAX_GROUPS, 0, -1) if channels % groups == 0), channels)


def _load_pretrained(name: str) -> nn.Module:
    from transformers import AutoModel

    with _report_loading_errors(name):
        model: nn.Module = AutoModel.from_pretrained(SHORT_NAMES.get(name, name), dtype=torch.float32)
    return model


@contextmanager
def _report_loading_errors(name: str) -> Iterator[None]:
    """Turn errors of ``transformers`` inside the block into a :class:`UsageError` for the user."""
    try:
        yield
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise UsageError(
            f"the image backbone cannot be loaded: {first_line}",
            where=f"encoder.backbone = {name}",
            remedy="give a folder with an image model, or encoder.backbone_config for a random one",
        ) from None


def _build_from_settings(settings: Mapping[str, Any]) -> nn.Module:
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
        raise UsageError(
            "the file with the backbone's weights does not exist",
            where=path,
            remedy="give a safetensors file",
        )
    try:
        backbone.load_state_dict(load_file(path))
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the backbone weights do not fit: {' '.join(str(error).split())[:200]}",
            where=path,
            remedy="give weights of the same encoder.backbone and backbone_config",
        ) from None
