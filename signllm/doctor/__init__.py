"""What this machine can do for SignLLM and what is missing: the findings of ``signllm doctor``.

A finding says that something works, that it is absent and only some users need it, or that it is wrong and
how to repair it. Every operator solves a tiny problem on every device, and its result is compared with
float64. This takes a few seconds, mostly for importing torch; DeepSpeed and transformers are not imported,
only their versions are read.
"""

from __future__ import annotations

import importlib.util

from signllm.doctor.finding import Finding


def examine() -> list[Finding]:
    """Return all findings, in the order in which they are printed.

    Raises:
        UsageError: ``SIGNLLM_KERNELS`` asks for something that is not available.
    """
    from signllm.doctor import machine, packages

    results = [*machine.findings(), *packages.findings()]
    if importlib.util.find_spec("torch") is not None:
        from signllm.doctor import accelerators, operators

        results += [*accelerators.findings(), *operators.findings()]
    return [*results, *machine.cluster_findings()]


__all__ = ["Finding", "examine"]
