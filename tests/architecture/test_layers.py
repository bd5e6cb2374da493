"""Lower layers never import higher ones, and siblings never import each other."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from importlinter.api import read_configuration
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = str(ROOT / "pyproject.toml")


def test_the_contract_holds(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # The linter puts the working folder there.
    status = lint_imports(CONFIGURATION, no_cache=True, no_logo=True, is_debug_mode=True)
    assert status == EXIT_STATUS_SUCCESS


def test_every_room_has_its_layer():
    (contract,) = read_configuration(CONFIGURATION)["contracts_options"]
    text = " ".join(contract["layers"]).replace("|", " ").replace(":", " ")
    layered = {word.strip("()") for word in text.split()}
    rooms = {path.stem for path in (ROOT / "src" / "alloykit").iterdir() if _is_room(path)}
    assert rooms == layered
    assert str(contract["exhaustive"]).lower() == "true"


def _is_room(path: Path) -> bool:
    module = path.suffix == ".py" and path.name != "__init__.py"
    return module or (path / "__init__.py").exists()


def test_the_contract_is_about_this_package():
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert configuration["tool"]["importlinter"]["root_package"] == "alloykit"
