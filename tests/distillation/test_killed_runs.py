"""A distillation killed at random steps goes on to the same bits."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("killed_runs.py")


def test_killed_runs_end_in_the_same_bits(tmp_path):
    seed = random.randrange(10**6)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, str(seed)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    found = re.findall(r"killed (\d) times, (\w+) bits", done.stdout)
    assert [bits for _, bits in found] == ["same", "same"], f"seed {seed}: {done.stdout}"
    assert all(int(times) >= 1 for times, _ in found), f"seed {seed}: {done.stdout}"
