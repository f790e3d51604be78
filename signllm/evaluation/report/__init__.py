"""A run, or a demo, as one self-contained HTML file."""

from signllm.evaluation.report.document import report

__all__ = ["report"]
