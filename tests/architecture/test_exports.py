"""What ``import alloykit`` offers, and what it does not drag in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import alloykit

MOST_NAMES = 27
HEAVY = (
    "torch", "numpy", "scipy", "pydantic", "typer", "rich", "jinja2", "matplotlib", "torchmetrics",
    "safetensors", "yaml", "PIL", "sklearn", "transformers", "optuna", "ray", "flwr", "lightning",
)  # fmt: skip


def test_names_are_few_sorted_and_unique():
    assert len(alloykit.__all__) <= MOST_NAMES
    assert alloykit.__all__ == sorted(set(alloykit.__all__))


@pytest.mark.parametrize("name", alloykit.__all__)
def test_every_name_resolves_to_what_is_called_so(name: str):
    assert getattr(alloykit, name).__name__ == name


def test_dir_is_what_is_exported():
    assert set(dir(alloykit)) == {*alloykit.__all__, "__version__"}


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'merged'"):
        alloykit.merged  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(alloykit.__file__).read_text(encoding="utf-8"))
    (block,) = [
        node for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]  # fmt: skip
    imported = {
        (alias.name, node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(alloykit._HOMES.items())
    assert set(alloykit._HOMES) == set(alloykit.__all__)


def test_no_public_name_is_also_a_package():
    folders = {path.parent.name for path in Path(alloykit.__file__).parent.glob("*/__init__.py")}
    assert folders.isdisjoint(alloykit.__all__)


def test_importing_it_imports_nothing_heavy():
    code = f"import alloykit, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
