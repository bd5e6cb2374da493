"""Docstrings run, and say what a reader needs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import alloykit
from alloykit.registry import (
    Entry,
    distillation_losses,
    ensemble_rules,
    fusion_heads,
    merge_methods,
    soups,
)

LONGEST_FIRST_LINE = 100

ELSEWHERE = ("alloykit.cli.__main__", "alloykit.plugins.flower")
"""A script, and what tests/flower runs where Flower is installed."""

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(alloykit.__path__, "alloykit.")
    if not module.name.startswith(ELSEWHERE)
)
FACTORIES = [
    pytest.param(entry, registry.sort, id=f"{registry.sort} {entry.name}")
    for registry in (merge_methods, ensemble_rules, soups, fusion_heads, distillation_losses)
    for entry in registry.entries()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = map(importlib.import_module, MODULES)
    assert sum(bool(t.examples) for m in modules for t in finder.find(m)) > 30


@pytest.mark.parametrize("name", [n for n in alloykit.__all__ if n != "AlloyError"])
def test_public_names_document_their_parameters(name: str):
    value = getattr(alloykit, name)
    docstring = inspect.getdoc(value) or ""
    _check_first_line(docstring)
    if name == "Comparison":
        return  # Users read its attributes; it is made by compare.
    parameters = [p for p in inspect.signature(value).parameters if p != "self"]
    assert _undocumented(docstring, parameters) == []


@pytest.mark.parametrize(("entry", "sort"), FACTORIES)
def test_registered_methods_have_every_section(entry: Entry, sort: str):
    docstring = inspect.getdoc(entry.factory) or ""
    _check_first_line(docstring)
    assert "Use it " in docstring, "it does not say when to use it"
    assert _undocumented(docstring, list(entry.parameters)) == []
    source = inspect.getsource(inspect.unwrap(entry.factory))
    wanted = {"References": bool(entry.contract["paper"]), "Raises": "    raise Invalid" in source}
    wanted["Shapes"] = sort != "soup"
    wanted["Needs"] = sort in ("merge method", "soup")
    needed = [title for title, whether in wanted.items() if whether]
    assert [title for title in needed if not _section(docstring, title)] == []


def _check_first_line(docstring: str) -> None:
    first = docstring.partition("\n")[0]
    assert first.endswith("."), f"not a sentence: {first!r}"
    assert len(first) <= LONGEST_FIRST_LINE


def _section(docstring: str, title: str) -> str:
    """The indented lines under a title; "" where there is no such section."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", docstring + "\n", re.MULTILINE)
    return found[1] if found else ""


def _undocumented(docstring: str, parameters: list[str]) -> list[str]:
    said = re.findall(r"^    \*{0,2}(\w+):", _section(docstring, "Args"), re.MULTILINE)
    return [name for name in parameters if name not in said]


def test_the_check_itself_sees_what_is_missing():
    docstring = "Do it.\n\nArgs:\n    one: It.\n        More: of it.\n\nRaises:\n    E: x\n"
    assert _undocumented(docstring, ["one", "two"]) == ["two"]
    assert _section(docstring, "Raises").strip() == "E: x"
    assert _section(docstring, "References") == ""
