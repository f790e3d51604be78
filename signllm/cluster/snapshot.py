"""A copy of the code as it was when a job was submitted, because the checkout may change before it runs.

The package's own files (one megabyte, without caches) are copied into ``LOGS/code/HASH/``, which is the first
folder in the job's ``PYTHONPATH``. HASH depends on the contents, so launches of the same code share a copy; a
copy is complete or absent. A run that a later launch continues uses that launch's code. Installed libraries
are not copied: a job uses the environment from which it was launched. ``RUN/code/HASH.tar.gz`` is the same
code, packed, as a record of what produced the run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from signllm.atomic_files import atomic_file, report_full_disk
from signllm.errors import UsageError
from signllm.package_files import ORIGIN, PACKAGE, SHIPPED, package_folder
from signllm.version import VERSION

CACHE = "__pycache__"
KINDS = ("py", "html", "css", "js")
"""Suffixes of the package's files; templates and style sheets belong to reports and to ``signllm serve``."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of the code.

    Attributes:
        folder: folder for ``PYTHONPATH``, which contains ``signllm/``.
        commit: commit of the checkout; None outside of git.
        changed: whether the checkout had uncommitted changes.
    """

    folder: Path
    commit: str | None
    changed: bool

    def describe(self) -> str:
        """Return the folder of the copy and its commit or version."""
        origin = f"commit {self.commit[:12]}" if self.commit else f"version {VERSION}"
        return f"{self.folder} ({origin}{', with changes' if self.changed else ''})"


def planned_snapshot(folder: Path, package: Path = PACKAGE) -> Snapshot:
    """Return the copy that :func:`take_snapshot` would make now, without making it."""
    sources = _sources(package)
    name = _hash({inside: path.read_bytes() for inside, path in sources.items()})
    return Snapshot(folder.absolute() / name, *_git_state(package))


def take_snapshot(folder: Path, package: Path = PACKAGE) -> Snapshot:
    """Copy the running code into ``folder/HASH``, unless that copy exists.

    Args:
        folder: a folder on a file system that all nodes can access.
        package: folder of the package.

    Raises:
        UsageError: the disk is full, or the existing copy was changed by hand.
    """
    with report_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".", dir=folder))
        try:
            _copy(_sources(package), unfinished)
            name = _hash(_contents(unfinished))
            snapshot = Snapshot(folder.absolute() / name, *_git_state(package))
            origin = {"version": VERSION, "commit": snapshot.commit, "changed": snapshot.changed}
            (unfinished / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
            unfinished.chmod(0o755)
            _put(unfinished, snapshot.folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    if _hash(_contents(snapshot.folder)) != name:
        raise UsageError(
            "this copy of the code was changed after it was made",
            where=snapshot.folder,
            remedy="remove it once no job uses it, or launch with another --logs",
        )
    return snapshot


def pack(snapshot: Snapshot, run: Path) -> Path:
    """Write the code into a run folder as ``code/HASH.tar.gz``, and return the file.

    Raises:
        UsageError: the disk is full.
    """
    path = run / "code" / f"{snapshot.folder.name}.tar.gz"
    if path.exists():
        return path
    with (
        atomic_file(path) as unfinished,
        gzip.open(unfinished, "wb") as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        archive.add(snapshot.folder, arcname=snapshot.folder.name, filter=_without_caches)
    return path


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out caches that running the copy has written, and the name of the user who packs it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if CACHE in Path(entry.name).parts else entry


def _sources(package: Path) -> dict[Path, Path]:
    """Return the package's files by their path in the copy, including its folders of plain files.

    A ``ds_configs`` folder in the working directory takes precedence over the shipped one, so what is found
    there now is what the job will find.
    """
    own = [path for kind in KINDS for path in package.rglob(f"*.{kind}")]
    code = {path.relative_to(package.parent): path for path in own}
    for name in SHIPPED:
        for folder in (package_folder(name, package), Path(name)):
            for pattern in SHIPPED[name]:
                code |= {Path(package.name, name, path.name): path for path in folder.glob(pattern)}
    return {inside: path for inside, path in sorted(code.items()) if path.is_file()}


def _copy(sources: dict[Path, Path], folder: Path) -> None:
    for inside, path in sources.items():
        copy = folder / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copy.chmod(0o444)


def _put(unfinished: Path, folder: Path) -> None:
    """Rename a finished copy to its final name, unless another launch of the same code was faster."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _hash(contents: dict[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for inside, data in sorted(contents.items()):
        digest.update(f"{inside.as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def _contents(folder: Path) -> dict[Path, bytes]:
    """Return the contents of a copy, without caches."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        inside: path.read_bytes()
        for inside, path in files.items()
        if CACHE not in inside.parts and inside != Path(ORIGIN)
    }


def _git_state(package: Path) -> tuple[str | None, bool]:
    """Return the commit of the checkout that contains the package, and whether it has changes."""
    git = ["git", "-C", str(package.parent)]
    copied = [f"{name}/{pattern}" for name, patterns in SHIPPED.items() for pattern in patterns]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        results = [
            subprocess.run([*git, *words], env=environment, capture_output=True, text=True, timeout=60)
            for words in (
                ("ls-files", "--error-unmatch", package.name + "/__init__.py"),
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "--", f"{package.name}/*.py", *copied),
            )
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None, False
    if any(done.returncode for done in results):
        return None, False
    return results[1].stdout.strip(), bool(results[2].stdout.strip())
