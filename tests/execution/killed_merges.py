"""Merges that are killed again and again, each in a fork of this process; prints what happened.

    python killed_merges.py FOLDER METHOD KILLS

A process of its own, since a fork of one that runs other threads may hang.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from alloykit.api.planning import planned
from alloykit.execution.journal import Journal
from alloykit.execution.limits import Limits
from alloykit.execution.output import PartialFiles
from alloykit.execution.running import run_blocks
from alloykit.execution.to_files import Destination, merge_to_files

BLOCK = 1 << 16
SLOW = 0.004
"""Seconds that a write takes, so that kills come in the middle of something."""

SHAPES = {f"layers.{i}.weight": (301, 517 + i) for i in range(9)} | {"norm": (517,)}


def made(folder: Path) -> list[str]:
    """A base and three models."""
    paths = []
    for seed, name in enumerate(("base", *"abc")):
        generator = torch.Generator().manual_seed(seed)
        state = {n: torch.randn(s, generator=generator).bfloat16() for n, s in SHAPES.items()}
        paths.append(str(folder / f"{name}.safetensors"))
        save_file(state, paths[-1])
    return paths


def merge(paths: list[str], method: str, target: Path, limits: Limits) -> list[int]:
    """Merge into the target, continuing what is there; the blocks that it took."""
    job = planned(paths[1:], method, base=paths[0])
    shard = None if target.suffix else 700_000
    destination = Destination(target, {}, shard, resume=True, identity=job.identity())
    computed: list[int] = []

    def counting(arithmetic, cutting, indices, files, **options):
        computed.extend(indices)
        run_blocks(arithmetic, cutting, indices, files, **options)

    merge_to_files(job.arithmetic(), destination, limits=limits, execute=counting)
    return computed


def killed(writes: int, seconds: float, *arguments) -> bool:
    """Whether a merge was killed so many seconds after so many writes, and had not ended before."""
    telling, told = os.pipe()
    child = os.fork()
    if not child:
        write = PartialFiles.write

        def slowly(self, block, data):
            time.sleep(SLOW)
            write(self, block, data)
            os.write(told, b".")

        PartialFiles.write = slowly
        merge(*arguments)
        os._exit(0)
    os.close(told)
    for _ in range(writes):
        os.read(telling, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.close(telling)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def digest(target: Path) -> str:
    """SHA-256 of a file, or of all files of a folder."""
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def noted(target: Path) -> int:
    """How many blocks the journal says are done, after a line that a kill cut off."""
    path = target.with_name(f".{target.name}.journal")
    if not path.exists():
        return 0
    with path.open("ab") as file:
        file.write(b'{"blocks": [[0, 10')
    journal = Journal(path, "", 0)
    journal.lock()
    done = journal.read()[1]
    journal.close()
    return len(done)


def tried(paths: list[str], method: str, target: Path, expected: Path, kills: int) -> dict:
    """Kill so many merges of one target, and continue each; what became of them."""
    chance = random.Random(0)
    limits = Limits(threads=1, block=BLOCK, sync=4 * BLOCK)
    blocks = len(merge(paths, method, expected, limits))
    count, useful, same = 0, 0, True
    while count < kills:
        changed = Limits(chance.choice([1, 2, 3]), block=chance.choice([1, 4]) * BLOCK, sync=4 * BLOCK)  # fmt: skip
        if killed(chance.randrange(12), chance.uniform(0.0, 0.02), paths, method, target, changed):
            count += 1
            useful += noted(target) > 0
        if target.exists():
            same = same and digest(target) == digest(expected)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    before = noted(target)
    computed = len(merge(paths, method, target, limits))
    return {
        "killed": count,
        "useful": useful,
        "blocks": blocks,
        "noted": before,
        "computed": computed,
        "same": same and digest(target) == digest(expected),
        "left": sorted(path.name for path in target.parent.glob(".*")),
    }


def main(folder: Path, method: str, kills: int) -> None:
    """Kill, continue, and compare with a merge that nothing disturbed."""
    torch.set_num_threads(1)
    paths = made(folder)
    file = tried(paths, method, folder / "o.safetensors", folder / "expected.safetensors", kills)
    shards = tried(paths, method, folder / "o", folder / "expected", kills // 3)
    print(json.dumps([file, shards]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
