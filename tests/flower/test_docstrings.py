"""The examples in the plug-in's docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import alloykit.plugins

MODULES = sorted(
    module.name for module in pkgutil.iter_modules(alloykit.plugins.__path__, "alloykit.plugins.")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = map(importlib.import_module, MODULES)
    assert sum(bool(test.examples) for module in modules for test in finder.find(module)) >= 6
