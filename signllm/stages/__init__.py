"""The three stages of training: each builds a model and data, and calls ``fit`` or CRA."""
