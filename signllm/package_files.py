"""Paths of the data files that are distributed with the package: ``ds_configs`` and ``slurm``.

In a checkout these folders lie at the top level, where people look for them. In an installed wheel they lie
inside the package (``package-dir`` in pyproject.toml). Every reader of these files uses the functions below,
so that the difference is handled in one place.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from signllm.errors import UsageError

PACKAGE = Path(__file__).parent
SHIPPED = {"ds_configs": ("*.json",), "slurm": ("*.toml", "*.sbatch", "*.md")}
"""The distributed folders, each with the patterns of its distributed files."""
ORIGIN = "origin.json"
"""File next to the package that marks a job's copy of the code (:mod:`signllm.cluster.snapshot`)."""


def package_folder(name: str, package: Path | None = None) -> Path:
    """Return the path of the folder ``ds_configs`` or ``slurm`` in the checkout or the installed package."""
    package = package or PACKAGE
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def find_package_file(folder: str, name: str, suffix: str) -> Path:
    """Return the path of a file that is given by its short name (``zero2``, ``a100``) or by its path.

    A short name is searched in the working directory (``zero2.json``, then ``ds_configs/zero2.json``), then
    among the files of the package. A job's copy of the code contains the files that the working directory's
    ``ds_configs`` had at submission, so inside a job that copy is used instead of the working directory's
    folder.

    Args:
        folder: ``ds_configs`` or ``slurm``.
        name: the short name or the path.
        suffix: suffix of the file, with its dot.

    Raises:
        UsageError: there is no such file; the message lists the existing names.
    """
    path = Path(name)
    if path.suffix == suffix or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UsageError(f"there is no file {name}", where=path.absolute(), remedy="check the path")
    local_folders = () if (PACKAGE.parent / ORIGIN).is_file() else (Path(folder),)
    for parent in (Path(), *local_folders, package_folder(folder)):
        if (parent / f"{name}{suffix}").is_file():
            return parent / f"{name}{suffix}"
    names = sorted(path.stem for path in package_folder(folder).glob(f"*{suffix}"))
    similar = difflib.get_close_matches(name, names, n=1)
    raise UsageError(
        f"there is no {name!r} in {folder}",
        where=package_folder(folder),
        remedy=(f"did you mean {similar[0]!r}? " if similar else "")
        + f"the available names are {', '.join(names)}; a path to a {suffix} file works too",
    )
