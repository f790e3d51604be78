"""Demo: a generated sign language with known truth, and the whole path on it beside its controls."""
