"""Where the plain files are that travel with the package: ``ds_configs`` and ``slurm``.

In a checkout they stand at its top, where a reader looks for them; an installed wheel carries them inside the
package (pyproject.toml, ``package-dir``). Every reader asks here, so that no path is written twice.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from signllm.errors import UsageError

PACKAGE = Path(__file__).parent
SHIPPED = {"ds_configs": ("*.json",), "slurm": ("*.toml", "*.sbatch", "*.md")}
"""The folders, and the files of each that travel."""
ORIGIN = "origin.json"
"""What stands beside the package where it is a job's copy of the code (:mod:`signllm.cluster.snapshot`)."""


def shipped_folder(name: str, package: Path | None = None) -> Path:
    """Return the folder ``ds_configs`` or ``slurm``, from the checkout or from the installed package."""
    package = package or PACKAGE
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def shipped_file(folder: str, name: str, suffix: str) -> Path:
    """Return a file by its short name (``zero2``, ``a100``) or by its path.

    A name is looked for in the working directory (``zero2.json``, ``ds_configs/zero2.json``), then among the
    files that came with the package. A job's copy of the code holds what the working directory's
    ``ds_configs`` held at submission, and is asked instead of it.

    Raises:
        UsageError: there is no such file; names what there is.
    """
    given = Path(name)
    if given.suffix == suffix or len(given.parts) > 1:
        if given.is_file():
            return given
        raise UsageError(f"there is no file {name}", where=given.absolute(), remedy="check the path")
    here = () if (PACKAGE.parent / ORIGIN).is_file() else (Path(folder),)
    for place in (Path(), *here, shipped_folder(folder)):
        if (place / f"{name}{suffix}").is_file():
            return place / f"{name}{suffix}"
    names = sorted(path.stem for path in shipped_folder(folder).glob(f"*{suffix}"))
    near = difflib.get_close_matches(name, names, n=1)
    raise UsageError(
        f"there is no {name!r} in {folder}",
        where=shipped_folder(folder),
        remedy=(f"did you mean {near[0]!r}? " if near else "")
        + f"there are {', '.join(names)}, or a path to {suffix}",
    )
