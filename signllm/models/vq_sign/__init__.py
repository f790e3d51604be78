"""VQ-Sign: the visual encoder, the quantizer and the context predictor."""
