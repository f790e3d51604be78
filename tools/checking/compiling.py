"""Compile every Triton kernel for Hopper, which needs no GPU, and read the report of ptxas.

Each module ``signllm/kernels/*_triton.py`` lists its kernels as they are launched (``kernel_variants()``).
Each is compiled twice: for tensors whose sizes and addresses are multiples of 16, and for any others. A
kernel that spills registers, or wants more shared memory than a multiprocessor has, fails the check: it
would be slow, or not start.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
CAPABILITY = 90
SHARED_LIMIT = 227 * 1024
HEADERS = ("kernel", "sizes", "registers", "spill bytes", "shared KB", "matrix units", "")


@dataclass(kw_only=True)
class Compiled:
    """One kernel compiled once; ``trouble`` is empty where it passes."""

    name: str
    sizes: str
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    matrix_units: str = "-"
    trouble: str = ""

    @property
    def line(self) -> tuple[str, ...]:
        """The kernel as a line of the table."""
        numbers = (str(self.registers), str(self.spill_bytes), f"{self.shared_bytes / 1024:.1f}")
        return (self.name, self.sizes, *numbers, self.matrix_units, self.trouble or "ok")


def main(target: Path) -> int:
    """Compile all, print the table, write it as JSON; return the exit code."""
    modules = sorted((CHECKOUT / "signllm" / "kernels").glob("*_triton.py"))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        results = [
            compiled
            for module in modules
            for compiled in _compiled_of(f"signllm.kernels.{module.stem}", pool)
        ]
    widths = [max(map(len, column)) for column in zip(HEADERS, *(c.line for c in results), strict=True)]
    for line in (HEADERS, *(c.line for c in results)):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    target.write_text(json.dumps([asdict(c) for c in results], indent=2) + "\n", encoding="utf-8")
    failed = [c for c in results if c.trouble]
    print(f"{len(results) - len(failed)} of {len(results)} compile for sm_{CAPABILITY} as they should")
    return 1 if failed or not results else 0


def _compiled_of(module_name: str, pool: Executor) -> list[Compiled]:
    """Compile a module's kernels, several at once; each process finds its own by number."""
    try:
        kernel_variants = importlib.import_module(module_name).kernel_variants()
    except Exception as error:
        trouble = f"no kernel_variants: {type(error).__name__}: {error}"
        return [Compiled(name=module_name, sizes="-", trouble=trouble)]
    jobs = [
        pool.submit(_numbered, module_name, number, *sizes)
        for number, specimen in enumerate(kernel_variants)
        for sizes in (("x16", 16), ("any", None))[: 1 if specimen.is_aligned else 2]
    ]
    return [job.result() for job in jobs]


def _numbered(module_name: str, number: int, sizes: str, alignment: int | None) -> Compiled:
    return _compiled(importlib.import_module(module_name).kernel_variants()[number], sizes, alignment)


def _compiled(specimen: Any, sizes: str, alignment: int | None) -> Compiled:
    """Compile one kernel; an error of Triton or ptxas is its ``trouble``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {
        (place,): [["tt.divisibility", alignment]]
        for place, name in enumerate(specimen.kernel.arg_names)
        if alignment and specimen.signature[name] not in ("constexpr", "fp32", "fp64")
    }
    source = ASTSource(
        fn=specimen.kernel,
        signature=dict(specimen.signature),
        constexprs=dict(specimen.constants),
        attrs=attributes,
    )
    try:
        kernel = triton.compile(
            source, target=GPUTarget("cuda", CAPABILITY, 32), options=dict(specimen.options)
        )
        output = _ptxas(kernel.asm["ptx"])
    except Exception as error:
        output = [line.strip() for line in str(error).splitlines() if line.strip()]
        trouble = f"{type(error).__name__}: {output[-1][:160] if output else ''}"
        return Compiled(name=specimen.name, sizes=sizes, trouble=trouble)
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", output))
    result = Compiled(
        name=specimen.name,
        sizes=sizes,
        registers=max((int(n) for n in re.findall(r"Used (\d+) registers", output)), default=0),
        spill_bytes=spilled,
        shared_bytes=int(kernel.metadata.shared),
        matrix_units=_matrix_units(kernel.asm["ptx"]),
    )
    if spilled:
        result.trouble = "spills registers"
    if result.shared_bytes > SHARED_LIMIT:
        result.trouble = f"above {SHARED_LIMIT // 1024} KB of shared memory"
    return result


def _matrix_units(ptx: str) -> str:
    return "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "none"


def _ptxas(ptx: str) -> str:
    """Return what Triton's own assembler says of a kernel (registers, spills)."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(CAPABILITY).path, f"--gpu-name={target[1]}", "-v", str(source)]
        command += ["-o", f"{folder}/kernel.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas: {done.stderr}")
    return done.stderr


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
