"""SignLLM: gloss-free sign language translation through sign tokens and a frozen LLM (arXiv 2404.00925).

``from signllm import load`` gives a translator of a finished run; nothing heavy is imported before it is
called.
"""

from __future__ import annotations

from typing import Any

from signllm.version import VERSION

__all__ = ["load"]
__version__ = VERSION


def __getattr__(name: str) -> Any:
    """Import ``load`` when it is first asked for: it needs torch, ``signllm --help`` does not."""
    if name == "load":
        from signllm.evaluation.translate import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
