"""The repository itself: layers, sizes, docstrings, files at the top, and the commands of the guides."""

import ast
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from signllm import verbs

CHECKOUT = Path(__file__).parents[1]
MODULES = sorted((CHECKOUT / "signllm").rglob("*.py"))
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
GUIDES = [
    CHECKOUT / folder / "README.md"
    for folder in (
        "signllm",
        "signllm/data",
        "signllm/models",
        "signllm/inference",
        "signllm/experiments",
        "ds_configs",
        "slurm",
        "tools",
        "tests",
    )
]
DOCUMENTS = [CHECKOUT / "README.md", *GUIDES]
CHANGELOG = CHECKOUT / ".github" / "CHANGELOG.md"
TOP = {"LICENSE", "README.md", "ds_configs", "pyproject.toml", "signllm", "slurm", "tests", "tools"}


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_top_holds_what_design_names_and_dotfiles() -> None:
    top = {name.split("/")[0] for name in tracked()}
    assert {name for name in top if not name.startswith(".")} <= TOP


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_module_says_what_it_is_and_stays_short(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    assert source.count("\n") <= 400
    for function in functions(tree):
        assert function.end_lineno - function.lineno < 80, function.name  # type: ignore[operator]
        arguments = [*function.args.args, *function.args.kwonlyargs]
        unannotated = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not unannotated, function.name
        assert function.returns is not None, function.name


def test_the_median_file_and_function_are_short() -> None:
    trees = {path: ast.parse(path.read_text()) for path in MODULES}
    lengths = [f.end_lineno - f.lineno + 1 for t in trees.values() for f in functions(t)]  # type: ignore[operator]
    assert statistics.median(path.read_text().count("\n") for path in trees) <= 150
    assert statistics.median(lengths) <= 12


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "helpers", "common", "misc"}
    assert not [path for path in MODULES if drawers & {path.stem, path.parent.name}]


def test_nothing_loads_a_pickle() -> None:
    for path in MODULES:
        source = path.read_text()
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib)\b", source, re.MULTILINE), path
        for call in re.findall(r"torch\.load\([^)]*\)", source):
            assert "weights_only=True" in call, path
        assert "allow_pickle=True" not in source, path


def test_imports_go_down_and_form_no_cycles() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    if not linter.is_file():
        pytest.skip("import-linter is an extra of development: pip install -e .[dev]")
    done = subprocess.run([linter, "--no-cache"], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_module_is_in_a_layer() -> None:
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {module for layer in layers for module in re.split(r"\s*[:|]\s*", layer)}
    for path in MODULES:
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        if parts[-1] != "__init__":
            above = {".".join(parts[: n + 1]) for n in range(1, len(parts))}
            assert named & above, f"{'.'.join(parts)} is in no layer of pyproject.toml"


def test_every_package_is_in_the_wheel() -> None:
    folders = {".".join(path.parent.relative_to(CHECKOUT).parts) for path in MODULES}
    shipped = {"signllm.ds_configs", "signllm.slurm"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | shipped


def blocks(path: Path) -> list[tuple[str, str]]:
    """Return the language and the text of every fenced or indented code block of a document."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = path.read_text()
    indented = re.findall(r"((?:^    .+\n)+)", fenced.sub("", text), re.MULTILINE)
    return fenced.findall(text) + [("", block) for block in indented]


def commands(path: Path) -> list[str]:
    """Return every command line of a document's shell blocks, continuation lines joined, without comments."""
    shell = [text for language, text in blocks(path) if language in ("", "bash", "sh", "console")]
    lines = "".join(shell).replace("\\\n", " ").splitlines()
    stripped = [line.split("  #")[0].strip().removeprefix("$ ") for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]


def verb_of(command: str) -> list[str] | None:
    """Return what a command line gives to ``signllm``, by itself or through sbatch or torchrun."""
    program = command.split()[0]
    if program not in ("signllm", "sbatch", "torchrun"):
        return None
    words = shlex.split(command)
    if program == "torchrun":
        return words[words.index("signllm") + 1 :]
    return words[2:] if program == "sbatch" else words[1:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_the_commands_of_the_documents_parse(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document's TOML blocks are there under the names of their first lines."""
    for name, text in re.findall(r"^```toml\n# (\S+)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for arguments in filter(None, map(verb_of, commands(path))):
        verbs.prepare(arguments)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_document_shows_commands_whose_programs_exist(path: Path) -> None:
    """Programs are ``signllm`` and standard tools, or scripts of this checkout."""
    standard = set("curl hf pip pre-commit python3 sbatch scancel signllm source torchrun".split())
    shown = commands(path) + re.findall(r"`((?:tools|\.ci)/[^`]+)`", path.read_text())
    programs = {command.split()[0] for command in shown}
    assert programs
    assert all((CHECKOUT / name).is_file() for name in programs - standard)


def test_sbatch_files_that_documents_name_are_whole_shell() -> None:
    named = {shlex.split(c)[1] for path in DOCUMENTS for c in commands(path) if c.startswith("sbatch ")}
    assert named == {"slurm/train.sbatch"}
    assert all(subprocess.run(["bash", "-n", CHECKOUT / name]).returncode == 0 for name in named)


def test_the_examples_of_the_help_parse() -> None:
    for verb in verbs.VERBS.values():
        verbs.prepare(shlex.split(verb.example)[1:])


def links(path: Path) -> list[tuple[Path, str]]:
    """Return the files that a document links to, with the heading that a link names or an empty string."""
    targets = re.findall(r"(?:\]\(|src=\")([^)\":]+)[)\"]", path.read_text())
    parts = [target.partition("#") for target in targets]
    return [((path.parent / name).resolve() if name else path, heading) for name, _, heading in parts]


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, CHANGELOG], ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_what_documents_link_to_exists(path: Path) -> None:
    for target, heading in links(path):
        assert target.is_relative_to(CHECKOUT), target
        assert target.exists(), target
        assert not heading or heading in anchors(target), f"{target}#{heading}"


def test_readme_is_short_and_links_to_every_guide() -> None:
    readme = CHECKOUT / "README.md"
    assert readme.read_text().count("\n") <= 150
    assert {*GUIDES, CHANGELOG, CHECKOUT / ".github" / "CITATION.cff"} <= {
        target for target, _ in links(readme)
    }


def test_files_that_the_guide_to_the_code_names_exist() -> None:
    text = (CHECKOUT / "signllm" / "README.md").read_text()
    for name in re.findall(r"`((?:tests/)?[a-z_]+/[a-z_0-9/]+\.py)`", text):
        assert any((folder / name).is_file() for folder in (CHECKOUT, CHECKOUT / "signllm")), name


@pytest.mark.parametrize("name", ["demo", "test", "environment"])
def test_tools_are_whole_shell(name: str) -> None:
    script = CHECKOUT / "tools" / name
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert name == "environment" or script.stat().st_mode & 0o111


def test_with_an_old_python_the_error_states_what_to_install(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    checkout = tmp_path / "checkout"
    (checkout / "tools").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    for name in ("demo", "environment", "constraints.txt"):
        (checkout / "tools" / name).write_bytes((CHECKOUT / "tools" / name).read_bytes())
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(old)}
    done = subprocess.run(
        ["bash", checkout / "tools" / "demo"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert "remedy:" in done.stderr
    assert not (checkout / ".venv").exists()
