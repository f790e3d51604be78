"""Evaluation: translation of splits and single videos, scores, comparisons, reports and exports."""
