"""What this machine can do for SignLLM, and what is missing: the facts behind ``signllm doctor``.

A finding is a line: it works, it is absent and only some need it, or it is wrong and has a remedy. Operators
are not believed: each runs a tiny problem on every device and is compared with float64. Costs a few seconds,
mostly torch's import; DeepSpeed and transformers are not imported, their versions are read.
"""

from __future__ import annotations

import importlib.util

from signllm.doctor.finding import Finding


def examine() -> list[Finding]:
    """Return all findings, in the order of reading.

    Raises:
        UsageError: ``SIGNLLM_KERNELS`` or ``SIGNLLM_DECODER`` asks for what there is not.
    """
    from signllm.doctor import machine, packages

    found = [*machine.findings(), *packages.findings()]
    if importlib.util.find_spec("av") is not None:
        found.append(packages.decoder_finding())
    if importlib.util.find_spec("torch") is not None:
        from signllm.doctor import accelerators, operators

        found += [*accelerators.findings(), *operators.findings()]
    return [*found, *machine.cluster_findings()]


__all__ = ["Finding", "examine"]
