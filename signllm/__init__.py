"""SignLLM: gloss-free sign language translation through sign tokens and a frozen LLM (arXiv 2404.00925).

``from signllm import load`` imports the function that loads a trained model as a translator. Heavy libraries
are imported only when ``load`` is accessed.
"""

from __future__ import annotations

from typing import Any

from signllm.version import VERSION

__all__ = ["load"]
__version__ = VERSION


def __getattr__(name: str) -> Any:
    """Import ``load`` on first access, because it imports torch, which ``signllm --help`` does not need."""
    if name == "load":
        from signllm.inference.translate import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
