"""The names of splits: whatever a dataset calls them, here they are ``train``, ``dev`` and ``test``.

Validation and the choice of the best checkpoint look for ``dev``. How2Sign says ``val``, OpenASL ``valid``,
the hub ``validation``.
"""

from __future__ import annotations

from collections.abc import Iterable

_SYNONYMS = {
    "train": ("train", "training", "trn"),
    "dev": ("dev", "devel", "develop", "development", "val", "valid", "validate", "validation"),
    "test": ("test", "testing", "tst"),
}
_STANDARD = {synonym: name for name, synonyms in _SYNONYMS.items() for synonym in synonyms}


def standardize_split(name: str) -> str:
    """Return ``train``, ``dev`` or ``test`` for every usual name of these splits, any other name as it is."""
    return _STANDARD.get(name.strip().casefold(), name.strip())


def is_known_split(name: str) -> bool:
    """Return whether a name is a usual one of ``train``, ``dev`` or ``test``."""
    return name.strip().casefold() in _STANDARD


def standardize_splits(names: Iterable[str]) -> dict[str, str]:
    """Return each name of a dataset's splits → the name that it gets here.

    A dataset that has both ``dev`` and another name for it keeps the two apart: ``dev`` is ``dev``, and
    ``val`` stays ``val``. Without ``dev`` all its names become ``dev``.
    """
    unique = list(dict.fromkeys(names))
    exact = {name.strip().casefold() for name in unique}
    return {
        name: standard if standard not in exact or name.strip().casefold() == standard else name.strip()
        for name in unique
        for standard in [standardize_split(name)]
    }


def find_split(name: str, available: Iterable[str]) -> str | None:
    """Return which of the available splits a name means: that very one, else the one of the same meaning."""
    present, standard = list(available), standardize_split(name)
    candidates = [name, standard, *(split for split in present if standardize_split(split) == standard)]
    return next((split for split in candidates if split in present), None)
