"""Standard names of splits: ``train``, ``dev`` and ``test``, whatever names a dataset uses.

Validation and the choice of the best checkpoint use ``dev``. How2Sign names it ``val``, OpenASL ``valid``,
and the Hugging Face hub ``validation``.
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
    """Return ``train``, ``dev`` or ``test`` for a usual name of these, and any other name unchanged."""
    return _STANDARD.get(name.strip().casefold(), name.strip())


def is_known_split(name: str) -> bool:
    """Return whether a name is a usual name of ``train``, ``dev`` or ``test``."""
    return name.strip().casefold() in _STANDARD


def standardize_splits(names: Iterable[str]) -> dict[str, str]:
    """Return the standard name of each split of a dataset, by its own name.

    If a dataset has both ``dev`` and another name for it, such as ``val``, both keep their names. Otherwise
    every name for it becomes ``dev``. The same holds for ``train`` and ``test``.
    """
    unique = list(dict.fromkeys(names))
    exact = {name.strip().casefold() for name in unique}
    return {
        name: standard if standard not in exact or name.strip().casefold() == standard else name.strip()
        for name in unique
        for standard in [standardize_split(name)]
    }


def find_split(name: str, available: Iterable[str]) -> str | None:
    """Return the available split of this name, else one of the same standard name, else None."""
    present, standard = list(available), standardize_split(name)
    candidates = [name, standard, *(split for split in present if standardize_split(split) == standard)]
    return next((split for split in candidates if split in present), None)
