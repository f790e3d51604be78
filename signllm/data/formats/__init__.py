"""One module per dataset format: each reads a dataset as it lies there into ``Annotations`` (``clip.py``)."""
