"""One module per dataset format: each reads a dataset as it lies on disk into :class:`~signllm.data.clip.Annotations`."""
