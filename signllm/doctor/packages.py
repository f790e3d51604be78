"""Findings about the packages that SignLLM requires: whether each is installed in the right version.

The requirements are read from the metadata of the installed project, or from pyproject.toml in a checkout
that is not installed. No package is imported.
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from signllm.doctor.finding import Finding

OPTIONAL = {
    "triton": "only GPUs need it, and it comes with CUDA builds of torch",
    "bitsandbytes": "only language models of 4 and 8 bits need it",
}
CHECKOUT = Path(__file__).parents[2]


def findings() -> list[Finding]:
    """Return a finding for every required package, and for the optional ones."""
    required = requirements()
    if not required:
        description = "neither installed nor in a checkout: what it needs is not known"
        return [
            Finding(
                group="packages",
                name="signllm",
                state="wrong",
                description=description,
                remedy="pip install .",
            )
        ]
    return [_finding(name, versions) for name, versions in required.items()]


def requirements() -> dict[str, str]:
    """Return the required versions (``">=2.8,<2.14"``) by package."""
    try:
        lines = [line for line in metadata.requires("signllm") or [] if "extra ==" not in line]
        optional = metadata.requires("signllm") or []
    except metadata.PackageNotFoundError:
        project = CHECKOUT / "pyproject.toml"
        if not project.is_file():
            return {}
        described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        lines = described["dependencies"]
        optional = [line for extra in described["optional-dependencies"].values() for line in extra]
    lines = [*lines, *(line for line in optional if _split(line)[0] in OPTIONAL)]
    return dict(_split(line) for line in lines)


def _split(line: str) -> tuple[str, str]:
    """Split ``"torch>=2.8,<2.14; marker"`` into name and versions."""
    text = line.split(";")[0].replace(" ", "").replace("(", "").replace(")", "")
    place = next((i for i, letter in enumerate(text) if letter in "<>=!~["), len(text))
    return text[:place].lower(), text[place:]


def _finding(name: str, versions: str) -> Finding:
    group = "torch" if name == "torch" else "packages"
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        if name in OPTIONAL:
            description = f"not installed: {OPTIONAL[name]}"
            return Finding(
                group=group, name=name, state="absent", description=description, facts={"version": None}
            )
        remedy = f"pip install '{name}{versions}'"
        return Finding(group=group, name=name, state="wrong", description="not installed", remedy=remedy)
    is_right = _holds(installed, versions)
    return Finding(
        group=group,
        name=name,
        state="ok" if is_right else "wrong",
        description=f"{installed} (wanted {versions})" if versions else installed,
        remedy="" if is_right else f"pip install '{name}{versions}'",
        facts={"version": installed, "wanted": versions},
    )


def _holds(installed: str, versions: str) -> bool:
    """Return whether a version is within a range; a local build (``2.13.0+cpu``) counts as its release."""
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:  # comes with transformers, whose absence is reported anyway
        return True
    return SpecifierSet(versions).contains(installed.split("+")[0], prereleases=True)
