"""``alloykit --help`` answers without importing torch."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

REPORTING = """
import atexit, sys
atexit.register(lambda: print("LOADED", *[m for m in {modules!r} if m in sys.modules]))
from alloykit.cli import main
main({arguments!r})
"""
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "torchmetrics", "sklearn")
COMMANDS = (
    "inspect",
    "merge",
    "verify",
    "average",
    "interpolate",
    "diagnose",
    "compare",
    "methods",
    "demo",
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["average", "--help"], ["merge", "--help"], ["compare", "--help"]]
)
def test_help_does_not_import_torch(arguments: list[str]):
    started = time.perf_counter()
    done = _run(arguments)
    # Printed for whoever runs pytest -s; nothing is asserted about time on a shared machine.
    print(f"alloykit {' '.join(arguments)}: {time.perf_counter() - started:.2f} s")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_help_names_every_command():
    shown = _run(["--help"]).stdout
    assert [command for command in COMMANDS if command not in shown] == []


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    code = REPORTING.format(modules=HEAVY, arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
