"""Merges of models that are many times larger than the memory that they are given.

    python benchmarks/memory_limit.py --folder FOLDER

Makes four models of 4 GB in bfloat16 in FOLDER (16 GB; half of each is one tensor), and merges
them by several methods, each run in a child process that may take 1.5 GB: of anonymous memory by
RLIMIT_DATA, and of all memory, page cache included, by a control group where the machine lets us
make one. Prints what each took, writes benchmarks/output/memory_limit.md, and removes the files.
About five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from measured_process import Cost, measured

OUTPUT = Path(__file__).parent / "output" / "memory_limit.md"
METHODS: dict[str, list[str]] = {
    "linear": [],
    "linear, --memory 20MB": ["--memory", "20MB"],
    "karcher": [],
    "ties": ["--density", "0.2"],
    "dare_ties": ["--density", "0.5"],
}
WITH_BASE = ("ties", "dare_ties")
MIB, GB = 1 << 20, 10**9
PIECE = 32 * MIB
"""Bytes of random values that a model repeats, at another place in each."""

CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ("/sys/fs/cgroup", "memory.max"),
)
"""Where control groups of the first and second kind are, and the file that holds their limit."""

INSIDE = "--inside"


def made_models(folder: Path, size: int) -> list[Path]:
    """Four models of that many bytes: an embedding of half of them, and layers."""
    generator = np.random.Generator(np.random.SFC64(0))
    values = generator.standard_normal(PIECE // 2, dtype=np.float32) * np.float32(0.02)
    # The upper half of a float32 is a bfloat16, rounded towards zero.
    piece = np.ascontiguousarray(values.view(np.uint16)[1::2])
    shapes = {"embed.weight": [size // 2 // 8192, 4096]}
    shapes |= {f"layers.{i}.weight": [size // 32 // 8192, 4096] for i in range(16)}
    paths = []
    for number in range(4):
        paths.append(folder / f"model-{number}.safetensors")
        _write(paths[-1], shapes, np.roll(piece, number * 1009).tobytes())
    return paths


def _write(path: Path, shapes: dict[str, list[int]], piece: bytes) -> None:
    end, header = 0, {}
    for name, (rows, columns) in shapes.items():
        start, end = end, end + 2 * rows * columns
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(piece)):
            file.write(piece[: min(len(piece), end - start)])


@contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """A control group with that much memory, or None where none can be made."""
    for root, name in CONTROL_GROUPS:
        group = Path(root) / f"memory-limit-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    yield None


def peak_of(group: Path | None) -> int | None:
    """The most memory that a group ever held, page cache included."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if group is not None and (group / name).exists():
            return int((group / name).read_text())
    return None


def run_inside(limit: int, group: str, command: Sequence[str]) -> None:
    """Become that command, with no more memory than that."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    os.execv(command[0], list(command))


def merged(name: str, models: Sequence[Path], limit: int) -> tuple[Cost, int | None]:
    """What a merge cost that could take no more memory than that."""
    method = name.partition(",")[0]
    base, rest = (models[0], models[1:]) if method in WITH_BASE else (None, models)
    target = models[0].with_name("merged.safetensors")
    program = str(Path(sys.executable).with_name("alloykit"))
    arguments = [program, "merge", method, *map(str, rest), *METHODS[name], "-o", str(target)]
    arguments += ["--base", str(base)] if base else []
    with control_group(limit) as group:
        inside = [sys.executable, __file__, INSIDE, str(limit), str(group or ""), *arguments]
        cost, held = measured(inside, {"OMP_NUM_THREADS": "1"}), peak_of(group)
    assert target.stat().st_size > models[0].stat().st_size - MIB
    target.unlink()
    return cost, held


def table(rows: dict[str, tuple[Cost, int | None]], size: int, limit: int) -> str:
    """The figures as Markdown."""
    lines = [
        f"# Four models of {size / GB:g} GB under a limit of {limit / GB:g} GB",
        "",
        "Peaks in MiB: of anonymous memory; and of all that a control group counts (page cache",
        "included, which the system takes back), where there was one.",
        "",
        "| merge | anonymous | in the group | wall s | CPU s |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, (cost, held) in rows.items():
        group = "–" if held is None else f"{held / MIB:.0f}"
        times = f"{cost.wall:.1f} | {cost.cpu:.1f}"
        lines.append(f"| {name} | {cost.memory / MIB:.0f} | {group} | {times} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Make the models, merge them, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=float, default=4.0, help="GB of each model")
    parser.add_argument("--limit", type=float, default=1.5, help="GB of memory")
    arguments = parser.parse_args()
    size, limit = int(arguments.size * GB), int(arguments.limit * GB)
    folder = arguments.folder / "memory-limit"
    folder.mkdir(parents=True)
    try:
        models = made_models(folder, size)
        rows = {name: merged(name, models, limit) for name in METHODS}
    finally:
        shutil.rmtree(folder)
    OUTPUT.write_text(table(rows, size, limit))
    print(OUTPUT.read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == [INSIDE]:
        run_inside(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    main()
