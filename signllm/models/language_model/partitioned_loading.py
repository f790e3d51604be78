"""Loading a language model under ZeRO-3 without ever holding more than a rank's own share in memory.

The model is built without weights. Then each rank copies its own part of each weight from the memory-mapped
safetensors. Nothing is communicated, all ranks together read the files once, and the only memory that is
needed is that of the share (``tools/check_loading`` measures it). ``transformers`` itself builds full
weights, broadcasts and partitions them, and then gathers each on all ranks to fill it. That needs the share,
twice the largest weight, and the memory that the allocator does not release.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class WeightFiles:
    """The weights in a model's folder, memory-mapped, so that nothing is read before it is used.

    Args:
        folder: folder with ``model.safetensors``, or with several weight files and their index.
        stack: the files stay open until this stack is closed.

    Attributes:
        files: name of the file that contains each tensor.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._open: dict[str, Any] = {}
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self.files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        else:
            self.files = dict.fromkeys(self._file("model.safetensors").keys(), "model.safetensors")

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._open:
            self._open[name] = self._stack.enter_context(safe_open(self._folder / name, "pt"))
        return self._open[name]

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._file(self.files[key]).get_tensor(key)
        return tensor


def load_partitioned(
    auto: Any,
    folder: Path,
    settings: Any,
    deepspeed: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    **options: Any,
) -> nn.Module | None:
    """Load a frozen model whose weights are partitioned over the ranks; every rank must call this.

    Args:
        auto: ``transformers`` class that builds the model.
        folder: folder of its safetensors.
        settings: configuration of the model.
        deepspeed: settings of the DeepSpeed engine, with ZeRO-3.
        dtype: precision of the weights.
        options: further arguments of building the model, for example the implementation of attention.

    Returns:
        The model. None if the tensors in the files do not correspond one by one to the weights of the model
        (older names, experts that are stored separately); ``transformers`` can convert such files.
    """
    model = build_without_weights(auto, settings, dtype=dtype, **options)
    with ExitStack() as stack:
        files = WeightFiles(folder, stack)
        places = locate_weights(model, files)
        if places is None:
            return None
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in files.files:
                    buffer.copy_(files[name])
            _partition_weights(model, files, places, deepspeed, dtype)
    loaded: nn.Module = model.eval()
    return loaded


def build_without_weights(auto: Any, settings: Any, **options: Any) -> Any:
    """Build a frozen model with weights on torch's meta device; only its buffers are computed."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = auto.from_config(settings, **options)
    model.tie_weights()
    return model.requires_grad_(False)


def locate_weights(model: Any, files: WeightFiles) -> dict[tuple[str, ...], str] | None:
    """Return the tensor in the files for each weight of a model, given by all names of the weight.

    A weight that several modules share may be stored under any of its names, and under several if their
    values are equal.

    Returns:
        The names, or None if ``transformers`` has to convert weights.

    Raises:
        ValueError: the shape of a tensor differs from that of the configuration. (``transformers`` would
            raise this error on rank 0 only.)
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    conversions = get_model_conversion_mapping(model)
    has_converter = any(isinstance(conversion, WeightConverter) for conversion in conversions)
    prefix = f"{model.base_model_prefix}."
    shared = defaultdict(list)
    for name, p in model.named_parameters(remove_duplicate=False):
        shared[p].append(name)
    places = {}
    for p, names in shared.items():
        possible = [key for name in names for key in (name, name.removeprefix(prefix))]
        keys = [key for key in dict.fromkeys(possible) if key in files.files]
        if not keys:
            return None
        for key in keys:
            stored = tuple(files[key].shape)
            if stored != p.shape and not has_converter:
                raise ValueError(
                    f"{key} has the shape {stored} in {files.files[key]}, {tuple(p.shape)} in config.json"
                )
            if stored != p.shape:
                return None
        if any(not torch.equal(files[keys[0]], files[key]) for key in keys[1:]):
            return None
        places[tuple(names)] = keys[0]
    return places


def _partition_weights(
    model: nn.Module,
    files: WeightFiles,
    places: Mapping[tuple[str, ...], str],
    deepspeed: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    """Replace weights on the meta device by partitions of DeepSpeed with the values in the files.

    DeepSpeed can only partition a full weight. It gets an uninitialized one, which takes no memory on a CPU
    and takes it on a GPU for a moment; then the rank's own partition is filled. Options of DeepSpeed that
    need the values of the full weight (a second copy within a node, 8-bit weights, weights on disk) get them.
    """
    from deepspeed import zero

    init: Any = zero.Init(module=nn.Module(), config_dict_or_path=dict(deepspeed))
    extras = (init.zero_param_process_group, init.param_swapper, init.quantized_nontrainable_weights or None)
    needs_values = any(extra is not None for extra in extras)
    parts = dict(model.named_modules())
    for names, key in places.items():
        stored = files[key]
        empty = torch.empty(stored.shape, dtype=dtype, device=init.local_device)
        weight: Any = nn.Parameter(empty.copy_(stored) if needs_values else empty, requires_grad=False)
        del empty
        init._convert_to_deepspeed_param(weight)
        weight.partition()
        if not needs_values:
            size = weight.ds_tensor.numel()
            local = stored.flatten()[size * init.rank :][:size]
            weight.ds_tensor[: len(local)].copy_(local)
            weight.ds_tensor[len(local) :].zero_()
        for name in names:
            owner, _, own = name.rpartition(".")
            parts[owner]._parameters[own] = weight
