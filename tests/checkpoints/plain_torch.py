"""Exported programs are run where torch is, and alloykit and the members' source are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

PROGRAM = """
import sys, torch
file, both, *absent = sys.argv[1:]
assert not any(name.startswith(tuple(absent)) for name in sys.modules)
inputs, expected = torch.load(both)
module = torch.export.load(file).module()
for rows in (1, 3, len(inputs)):
    torch.testing.assert_close(module(inputs[:rows]), expected[:rows], rtol=0, atol=1e-6)
assert not any(name.startswith(tuple(absent)) for name in sys.modules)
print("same")
"""


def assert_same_in_plain_torch(file: Path, inputs: Tensor, expected: Tensor, *absent: str) -> None:
    """The program gives ``expected`` in a Python that imports none of the ``absent`` modules."""
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    torch.save((inputs, expected), elsewhere / "expected.pt")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, file, "expected.pt", "alloykit", *absent],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "same\n", ran.stderr
