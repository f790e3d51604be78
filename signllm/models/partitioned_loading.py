"""Load a language model under ZeRO-3 so that a rank holds its share of it and never a whole copy of more.

The model is built without weights; then each rank copies its own piece of each weight out of the mapped
safetensors, one weight after the other. Nothing is sent, a shared file system is read once by all ranks
together, and no memory but the share is taken (``tools/check_loading`` measures it). ``transformers`` builds
weights, broadcasts and cuts them, then gathers each on all ranks to fill it: the share, the largest weight
twice, and what the allocator does not give back.
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
    """The tensors of a model's folder, mapped; nothing is read before it is used.

    Args:
        folder: with ``model.safetensors``, or shards and their index.
        stack: closes the files.
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
    """Return a frozen model whose weights are cut over the ranks (all ranks).

    Args:
        auto: the ``transformers`` class that builds it.
        folder: of its safetensors.
        settings: its configuration.
        deepspeed: the engine's settings, of ZeRO-3.
        dtype: of the weights.
        options: of building, e.g. the attention.

    Returns:
        None where the weights of the file are not those of the model one by one: older names, experts stored
        apart. ``transformers`` knows how to turn them then.
    """
    model = build_without_weights(auto, settings, dtype=dtype, **options)
    with ExitStack() as stack:
        shards = WeightFiles(folder, stack)
        places = locate_weights(model, shards)
        if places is None:
            return None
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in shards.files:
                    buffer.copy_(shards[name])
            _cut(model, shards, places, deepspeed, dtype)
    loaded: nn.Module = model.eval()
    return loaded


def build_without_weights(auto: Any, settings: Any, **options: Any) -> Any:
    """Return a frozen model on torch's meta device, but for its buffers, which are computed."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = auto.from_config(settings, **options)
    model.tie_weights()
    return model.requires_grad_(False)


def locate_weights(model: Any, shards: WeightFiles) -> dict[tuple[str, ...], str] | None:
    """Return where each weight of a model is found, by its names; None if ``transformers`` has to turn some.

    A weight that several modules share may be stored by any of its names; by two only if both say the same.

    Raises:
        ValueError: a weight has not the shape of the configuration (``transformers`` tells rank 0 alone).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    is_turned = any(isinstance(one, WeightConverter) for one in get_model_conversion_mapping(model))
    prefix = f"{model.base_model_prefix}."
    shared = defaultdict(list)
    for name, p in model.named_parameters(remove_duplicate=False):
        shared[p].append(name)
    places = {}
    for p, names in shared.items():
        known = [one for name in names for one in (name, name.removeprefix(prefix))]
        keys = [key for key in dict.fromkeys(known) if key in shards.files]
        if not keys:
            return None
        for key in keys:
            stored = tuple(shards[key].shape)
            if stored != p.shape and not is_turned:
                raise ValueError(f"{key} is {stored} in {shards.files[key]}, {tuple(p.shape)} by config.json")
            if stored != p.shape:
                return None
        if any(not torch.equal(shards[keys[0]], shards[key]) for key in keys[1:]):
            return None
        places[tuple(names)] = keys[0]
    return places


def _cut(
    model: nn.Module,
    shards: WeightFiles,
    places: Mapping[tuple[str, ...], str],
    deepspeed: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    """Turn the weights of a model without any into pieces of DeepSpeed's, filled from the files.

    DeepSpeed cuts what is whole. What it is given is memory that nobody has touched, which a CPU does not
    hold, a GPU for a moment; then the piece is filled. Its own extras (a second copy within a node, weights
    of 8 bits, weights on disks) are made of the whole weight.
    """
    from deepspeed import zero

    init: Any = zero.Init(module=nn.Module(), config_dict_or_path=dict(deepspeed))
    extras = (init.zero_param_process_group, init.param_swapper, init.quantized_nontrainable_weights or None)
    needs_whole = any(extra is not None for extra in extras)
    parts = dict(model.named_modules())
    for names, key in places.items():
        stored = shards[key]
        empty = torch.empty(stored.shape, dtype=dtype, device=init.local_device)
        cut: Any = nn.Parameter(empty.copy_(stored) if needs_whole else empty, requires_grad=False)
        del empty
        init._convert_to_deepspeed_param(cut)
        cut.partition()
        if not needs_whole:
            mine = stored.flatten()[cut.ds_tensor.numel() * init.rank :][: cut.ds_tensor.numel()]
            cut.ds_tensor[: len(mine)].copy_(mine)
            cut.ds_tensor[len(mine) :].zero_()
        for name in names:
            owner, _, own = name.rpartition(".")
            parts[owner]._parameters[own] = cut
