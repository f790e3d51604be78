"""Demo: a generated sign language with known truth, the three stages on it, and controls of its scores."""
