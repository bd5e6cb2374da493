"""Files are named for what they hold, stay small, and say what they are."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = sorted((ROOT / "src" / "alloykit").rglob("*.py"))
MOST_LINES = 400

NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "tools"}


def test_no_file_is_named_for_nothing():
    python = [*SOURCE, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    wrong = [p.name for p in python if p.stem in NAMELESS or p.stem.startswith("base_")]
    assert wrong == []


def test_no_folder_is_named_for_nothing():
    assert [p for p in {path.parent.name for path in SOURCE} if p in NAMELESS] == []


def test_files_stay_small():
    long = {path.name: n for path in SOURCE if (n := _lines(path)) > MOST_LINES}
    assert long == {}


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_every_module_begins_with_a_sentence():
    wrong = []
    for path in SOURCE:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = docstring.partition("\n")[0]
        if not first.endswith((".", ":")):
            wrong.append(f"{path.relative_to(ROOT)}: {first!r}")
    assert wrong == []


def test_packages_hold_a_docstring_and_nothing_heavy():
    packages = [path for path in SOURCE if path.name == "__init__.py"]
    assert len(packages) > 8
    for path in packages:
        if path.parent.name in ("alloykit", "cli"):
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) == 1, f"{path.parent.name}/__init__.py holds more than its docstring"
        assert isinstance(body[0], ast.Expr)
