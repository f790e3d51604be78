"""Nearest code: ours compared with `torch.cdist`, faiss, vector-quantize-pytorch and the bare product.

A contender's error is the share of rows that did not get their nearest code, by float64 distances.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import Case, Contender
from signllm.kernels import vq_assign

BLOCK_ROWS = 16384


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return random and clustered vectors: 100,000 in float32 on a CPU, 1,000,000 in bfloat16 on a GPU."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    n, d, k = (2003, 64, 37) if quick else (1_000_000 if cuda else 100_000, 1024, 256)
    name = f"{n}x{d}x{k} {'bf16' if cuda else 'fp32'}"
    return [
        Case(
            operator="vq_assign",
            name=f"{name} {kind}",
            error_is="share of rows without their nearest code",
            build=functools.partial(_build, n, d, k, dtype, kind == "clustered"),
        )
        for kind in ("random", "clustered")
    ]


def _build(
    n: int, d: int, k: int, dtype: torch.dtype, clustered: bool, device: torch.device, seed: int
) -> list[Contender]:
    x, codebook = _draw(n, d, k, dtype, clustered, device, seed)
    error = functools.partial(_error, _Truth(x, codebook))
    return [
        Contender(name="ours", role="ours", run=lambda _: vq_assign(x, codebook), error=error),
        Contender(name="bare product", role="bound", run=lambda _: x @ codebook.T, note="x @ codebook.T"),
        Contender(name="torch.cdist + argmin", role="rival", run=lambda _: _cdist(x, codebook), error=error),
        Contender(
            name="faiss IndexFlatL2",
            role="rival",
            run=_once(lambda: _faiss(x, codebook)),
            error=error,
            package="faiss",
            cpu_only=True,
            note="index built before",
        ),
        Contender(
            name="vector-quantize-pytorch",
            role="rival",
            run=_once(lambda: _lucidrains(x, codebook)),
            error=error,
            package="vector_quantize_pytorch",
            note="its codebook, eval mode",
        ),
    ]


def _draw(
    n: int, d: int, k: int, dtype: torch.dtype, clustered: bool, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    codebook = torch.randn(k, d, generator=generator, device=device).to(dtype)
    x = torch.empty(n, d, dtype=dtype, device=device)
    for begin in range(0, n, BLOCK_ROWS):
        noise = torch.randn(len(x[begin : begin + BLOCK_ROWS]), d, generator=generator, device=device)
        if clustered:
            nearest = torch.randint(k, (len(noise),), generator=generator, device=device)
            noise = codebook[nearest] + 0.5 * noise
        x[begin : begin + BLOCK_ROWS] = noise
    return x, codebook


def _cdist(x: Tensor, codebook: Tensor) -> Tensor:
    if x.is_cuda and x.dtype != torch.float32:
        x, codebook = x.float(), codebook.float()  # cdist has no half precision
    return torch.cdist(x, codebook).argmin(dim=1)


def _once(prepare: Any) -> Any:
    """Prepare a rival at its first run, so that a case can be built without it installed."""
    ready = functools.cache(prepare)
    return lambda _: ready()()


def _faiss(x: Tensor, codebook: Tensor) -> Any:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.float().numpy())
    rows = x.float().numpy()
    return lambda: torch.from_numpy(index.search(rows, 1)[1][:, 0])


def _lucidrains(x: Tensor, codebook: Tensor) -> Any:
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=codebook.shape[1], codebook_size=len(codebook)).to(x.device).eval()
    quantizer.codebook = codebook.float()

    @torch.no_grad()
    def assign() -> Tensor:
        index: Tensor = quantizer._codebook(x[None])[1][0]
        return index

    return assign


class _Truth:
    """Nearest codes by float64 distances, computed at the first use."""

    def __init__(self, x: Tensor, codebook: Tensor) -> None:
        self.x, self.codebook = x, codebook

    @functools.cached_property
    def index(self) -> Tensor:
        """(N,) the nearest code, the lowest of equals."""
        codes, nearest = self.codebook.double(), []
        for block in self.x.split(BLOCK_ROWS):
            nearest.append((codes.square().sum(1) - 2 * block.double() @ codes.T).argmin(dim=1))
        return torch.cat(nearest)


def _error(truth: _Truth, index: Tensor) -> tuple[float, dict[str, float]]:
    index = index.to(truth.index.device)
    wrong = (index != truth.index).nonzero()[:, 0]
    x, codes = truth.x[wrong].double(), truth.codebook.double()
    chosen, best = ((x - codes[i[wrong]]).square().sum(1) for i in (index, truth.index))
    excess = float(((chosen - best) / best).max()) if len(wrong) else 0.0
    return len(wrong) / len(index), {"wrong_rows": len(wrong), "largest_relative_excess": excess}
