"""Private vocabulary stays out of the code: names and phrases that strangers cannot decode."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
TOOLS = [
    path
    for path in (CHECKOUT / "tools").rglob("*")
    if path.suffix == ".py" or (path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env python3"))
]
TESTS = [*(CHECKOUT / "tests").rglob("*.py")]
MODULES = sorted({*(CHECKOUT / "signllm").rglob("*.py"), *TOOLS, *TESTS} - {Path(__file__)})
GUIDES = [
    CHECKOUT / "README.md",
    *sorted(path for path in CHECKOUT.glob("*/**/README.md") if ".venv" not in path.parts),
]
WORDS = {"told", "said", "held", "mine", "beside", "wish", "footage"}
"""Words that no name may contain."""
NAMES = {"found", "wanted", "given", "around", "at_rest", "known_by", "look", "looks", "whole"}
"""Names that nothing may have: a longer name may contain them."""
PHRASES = re.compile(
    r"\bat rest\b|\bbeside\b|\bwhoever\b|\bheld for\b|\b(?:is|are) told\b|\bknown by its\b", re.IGNORECASE
)
"""Phrases of text, comments and messages."""


def defined_names(tree: ast.AST) -> set[str]:
    """Return every name that a module defines: functions, classes, arguments, variables and attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def is_private_vocabulary(name: str) -> bool:
    lower = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("held_out", "")
    return bool(WORDS & set(lower.split("_"))) or lower.strip("_") in NAMES


@pytest.mark.parametrize(
    ("name", "is_banned"),
    [
        ("_told_by_rank", True),
        ("Footage", True),
        ("found", True),
        ("whole", True),
        ("holder", False),
        ("not_found", False),
    ],
)
def test_the_check_knows_names(name: str, is_banned: bool) -> None:
    assert is_private_vocabulary(name) == is_banned


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_names_and_texts_are_standard_english(path: Path) -> None:
    source = path.read_text()
    assert not [name for name in defined_names(ast.parse(source)) if is_private_vocabulary(name)]
    texts = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
    ]
    assert not [match[0] for text in texts for match in PHRASES.finditer(" ".join(text.split()))]


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_guides_are_standard_english(path: Path) -> None:
    assert not PHRASES.findall(" ".join(path.read_text().split()))
