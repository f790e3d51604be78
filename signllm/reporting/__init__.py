"""The report of a run or of a demo: one self-contained HTML file."""

from signllm.reporting.document import write_report

__all__ = ["write_report"]
