"""Translation and evaluation with a trained model, and its export."""
