"""Simulate a forward and backward pass of the real model without computing: operations, bytes and memory.

Floating-point tensors are on torch's meta device, where they have a shape and no values. Integers (lengths,
positions, masks) stay on the CPU with their values, because the model's control flow depends on them. Every
operator is recorded below autograd, in the order of a real step, so the live tensors are those of eager
torch. No formula is needed for recomputation, adapters or another family of models.

Attention counts as one fused operator that stores no matrix of scores, as in flash attention and in torch's
own implementations. What an operator allocates temporarily (workspace of convolutions) is not recorded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import signllm.kernels  # noqa: F401 - registers the operators that are looked for below

META = torch.device("meta")
ATEN = torch.ops.aten
ATTENTION = ATEN._scaled_dot_product_flash_attention_for_cpu
TABLES = (ATEN.embedding, ATEN.embedding_dense_backward)
INDEXING = (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._unsafe_index, ATEN._index_put_impl_)


@dataclass(frozen=True, kw_only=True)
class SimulatedPass:
    """What a pass computes and allocates. Live bytes include activations and batch, but not weights.

    Attributes:
        before_bytes: maximum of live bytes before the first weight has a gradient.
        after_bytes: maximum from then on, without the weights' gradients.
        after_full_bytes: the same with those gradients, unpartitioned.
        operations: (n,) floating-point operations of each operator; a multiply-add counts as 2.
        bytes: (n,) bytes that each operator reads and writes.
        is_wide: (n,) whether it computes in 32 bits.
    """

    before_bytes: int
    after_bytes: int
    after_full_bytes: int
    operations: NDArray[np.float64]
    bytes: NDArray[np.float64]
    is_wide: NDArray[np.bool_]


EMPTY_PASS = SimulatedPass(
    before_bytes=0,
    after_bytes=0,
    after_full_bytes=0,
    operations=np.zeros(0),
    bytes=np.zeros(0),
    is_wide=np.zeros(0, dtype=np.bool_),
)
"""A pass without operators."""


def simulate_pass(model: nn.Module, run: Callable[[], Tensor | None]) -> SimulatedPass:
    """Simulate ``run`` and, if it returns a loss, its backward pass.

    Args:
        model: a model on the meta device, whose gradients are dropped.
        run: the pass; it creates its inputs itself, so that they are counted.
    """
    recorder = _PassRecorder(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(recorder.count_gradient) for p in trained]
    with _Fused(), recorder:
        loss = run()
        if loss is not None:
            _backward(loss)
    for hook in hooks:
        hook.remove()
    for p in trained:
        p.grad = None
    operations, moved, is_wide = zip(*recorder.operators, strict=True)
    return SimulatedPass(
        before_bytes=recorder.before,
        after_bytes=recorder.after,
        after_full_bytes=recorder.after_full,
        operations=np.array(operations, dtype=np.float64),
        bytes=np.array(moved, dtype=np.float64),
        is_wide=np.array(is_wide, dtype=np.bool_),
    )


def _backward(loss: Tensor) -> None:
    """Run the backward pass with the modes still active; ``Tensor.backward`` would disable them."""
    engine: Any = torch.autograd.Variable._execution_engine
    gradient = torch.ones((), device=loss.device, dtype=loss.dtype)
    engine.run_backward((loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


class _Fused(TorchFunctionMode):
    """Uses fused attention where torch would compute its parts, and keeps the values of ``torch.tensor``."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is torch.tensor and _is_meta(kwargs.get("device")):
            return func(*args, **(kwargs | {"device": "cpu"})).to(META)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    mask = None if attn_mask is None else attn_mask.detach()  # T5's frozen bias needs no gradient
    attended: Tensor = ATTENTION(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]
    return attended


class _PassRecorder(TorchDispatchMode):
    """Keeps integers real and floating-point tensors without values; counts live bytes and operations."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
        self.operators: list[tuple[float, int, bool]] = []
        self.alive = self.gradients = 0
        self.before = self.after = self.after_full = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        tensors = list(_tensors((*args, *keywords.values())))
        is_real = not any(map(_is_empty, tensors))
        if not is_real:
            if func._overloadpacket in INDEXING or not all(map(_is_empty, tensors)):
                args, keywords = _without_values(func, args, keywords)
        elif _is_meta(keywords.get("device")) and not func(*args, **keywords).is_floating_point():
            keywords["device"] = torch.device("cpu")
        out = func(*args, **keywords)
        if func is torch.ops.signllm.vq_assign.default and not is_real:
            out = (out[0], torch.arange(len(out[1])) % len(args[1]))
        made = list(_tensors((out,)))
        if not func.is_view and not (is_real and not any(map(_is_empty, made))):
            self.operators.append(_cost(func._overloadpacket, args, keywords, out, tensors, made))
        for tensor in made:
            self.keep(tensor)
        return out

    def keep(self, tensor: Tensor) -> None:
        """Count a tensor's memory from now until it is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.alive += storage.nbytes()
        if self.gradients:
            self.after = max(self.after, self.alive - self.gradients)
            self.after_full = max(self.after_full, self.alive)
        else:
            self.before = max(self.before, self.alive)
        weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())

    def drop(self, key: int, size: int) -> None:
        """Stop counting a tensor's memory."""
        self.known.discard(key)
        self.alive -= size

    def count_gradient(self, p: Tensor) -> None:
        """Count the gradient that a weight has from now on."""
        assert p.grad is not None
        self.gradients += p.grad.nbytes


def _without_values(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Move all arguments to the meta device; a mask used as an index is replaced by positions first."""
    if func._overloadpacket in INDEXING:
        places: list[Tensor | None] = []
        for index in args[1]:
            is_mask = index is not None and index.dtype == torch.bool and not _is_empty(index)
            places += index.nonzero(as_tuple=True) if is_mask else [index]
        args = (args[0], places, *args[2:])
    return tuple(map(_moved, args)), {key: _moved(value) for key, value in kwargs.items()}


def _moved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if _is_empty(value) else value.to(META)
    return [_moved(inner) for inner in value] if isinstance(value, list | tuple) else value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _cost(
    packet: Any, args: Any, kwargs: Any, out: Any, tensors: list[Tensor], made: list[Tensor]
) -> tuple[float, int, bool]:
    """Return operations, bytes and width of an operator; only the rows read of an embedding table count."""
    operations = 0.0
    if packet in flop_registry:
        operations = float(flop_registry[packet](*args, **kwargs, out_val=out))
    elif packet in (ATTENTION, ATEN._scaled_dot_product_flash_attention_for_cpu_backward):
        query, key = (args[0], args[1]) if packet is ATTENTION else (args[1], args[2])
        products = 2 if packet is ATTENTION else 5
        operations = 2.0 * products * query.numel() * key.shape[2] / (2 if _is_causal(packet, args) else 1)
    moved = sum(t.nbytes for t in made)
    moved += moved if packet in TABLES else sum(t.nbytes for t in tensors)
    return operations, moved, any(t.dtype == torch.float32 for t in made)


def _is_causal(packet: Any, args: Any) -> bool:
    place = 4 if packet is ATTENTION else 7
    return len(args) > place and args[place] is True


def _is_empty(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"
