"""The version of the program, written once: for pyproject.toml, ``config.json`` and ``--version``."""

VERSION = "0.1.0"
