"""The small filmed dataset of the demo's tests, for the analyses of the demo's language."""

from tests.demo.conftest import filmed

__all__ = ["filmed"]
