"""A small web page on this machine that translates videos with a trained model: ``signllm serve``."""
