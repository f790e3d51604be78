"""The version of the program, which pyproject.toml, ``config.json`` and ``--version`` read from here."""

VERSION = "0.1.0"
