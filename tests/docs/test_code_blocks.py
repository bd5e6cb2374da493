"""Every code block of the README and of the documentation runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alloykit.cli import main
from alloykit.comparison.federated_study import FederatedStudy
from alloykit.comparison.study import Study, check_study
from alloykit.recipes.reading import read_recipe
from alloykit.registry import (
    distillation_losses,
    ensemble_rules,
    fusion_heads,
    merge_methods,
    soups,
)
from docs.pages import ROOT, Block, blocks, pages

HERE = Path(__file__).parent
REGISTRIES = (merge_methods, ensemble_rules, soups, fusion_heads, distillation_losses)
NOT_RUN = {"demo"}
"""Commands that take long, and have a test of their own in tests/cli."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory; what a page imports from it and registers is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    known = set(sys.modules)
    registered = [(registry, dict(registry._loaded)) for registry in REGISTRIES]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield tmp_path
    for registry, entries in registered:
        registry._found.clear()
        registry._found.update(entries)
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_runs(page: Path, folder: Path):
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.code, encoding="utf-8")
        if block.language == "python":
            # Line numbers of a traceback are those of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
        elif block.language == "yaml":
            _check_yaml(block, page, folder)
        elif block.language in ("bash", "console"):
            _run_commands(page, block)


def _check_yaml(block: Block, page: Path, folder: Path) -> None:
    content = yaml.safe_load(block.code)
    if "merge_method" not in content:
        kind = Study if "members" in content else FederatedStudy
        check_study(content, kind, where=f"{page.name}:{block.line}")
        return
    path = folder / (block.file or "block.yaml")
    path.write_text(block.code, encoding="utf-8")
    read_recipe(path)


def _run_commands(page: Path, block: Block) -> None:
    commands = [c for c in block.commands() if not NOT_RUN.intersection(c[:1])]
    for command in commands:
        status = block.exit_status if command is commands[-1] else 0
        assert _exit_status(command) == status, f"{page.name}:{block.line}: {command}"


def _exit_status(command: list[str]) -> int:
    try:
        main(command)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_blocks_are_of_known_languages():
    known = {"python", "yaml", "bash", "console", "text", "pycon"}
    found = {(block.language, page.name) for page in pages() for block in blocks(page)}
    assert {language for language, _ in found} <= known, sorted(found)


def test_pages_read_set_ups_files_and_commands(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- set-up\nx = 1\n-->\n```python\n# models.py\ny = x\n```\n"
        "<!-- exits with 4 -->\n```console\n"
        "$ alloykit inspect \\\n  'a b' # why\nnot a command\n```\n"
    )
    setup, code, shell = blocks(page)
    assert (setup.language, setup.code, setup.line) == ("python", "x = 1\n", 2)
    assert (code.file, code.line) == ("models.py", 5)
    assert list(shell.commands()) == [["inspect", "a b"]]
    assert shell.exit_status == 4
    assert setup.exit_status == code.exit_status == 0
