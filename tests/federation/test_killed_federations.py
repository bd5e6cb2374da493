"""A federation whose process is killed at random moments goes on to the same bits."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("killed_federations.py")


def test_killed_federations_end_in_the_same_bits(tmp_path):
    seed = random.randrange(10**6)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    found = re.findall(r"(\w+) killed (\d) times, (\w+) bits", done.stdout)
    ends = {case: (times, bits) for case, times, bits in found}
    cases = ("fedadam", "scaffold", "fedbuff", "feddf")
    assert ends == dict.fromkeys(cases, ("5", "same")), f"seed {seed}: {done.stdout}"
