"""What a merge costs: alloykit, mergekit, a plain script, and the copy that nothing can beat.

    python benchmarks/merge_speed.py --folder FOLDER --mergekit PATH/TO/ENVIRONMENT/bin

Checkpoints are made into FOLDER once (8.8 GB for 1.1 billion parameters in bfloat16: a base and
three fine-tunes, sharded) and reused. Every tool runs as a child process; runs are interleaved and
the median of --repeats is shown. Three sections:

- speed: six methods; processor and wall seconds, as ratios to mergekit and to the floor (`cat` of
  all inputs, then `cp` of one output);
- memory: the same merges by alloykit at 0.1, 1.1 and 3 billion parameters (another 25 GB);
- tiny: 1,000 to 8,000 tensors of 16 elements.

mergekit is measured where --mergekit says where its programs are; it needs an environment of its
own. Each section keeps its figures in FOLDER/results.json; all that is there goes into the table,
benchmarks/output/merge_speed.md. About an hour in all on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from measured_process import Cost, measured
from merge_checkpoints import SIZES, made_checkpoints, made_tiny, shard_files
from merge_runs import JOBS, Job, Tool, command
from merge_speed_table import Key, Results, report

OUTPUT = Path(__file__).parent / "output" / "merge_speed.md"
TINY = (1, 1000, 2000, 4000, 8000)
TINY_FOR_MERGEKIT = 4000
"""Its time grows with the square: 8,000 tensors were not done after nine minutes."""

Run = tuple[Key, Job, Tool, dict[str, Path]]


def speed_runs(folder: Path, size: str, methods: Iterable[str], peer: bool) -> Iterator[Run]:
    """One round of the first section."""
    checkpoints = made_checkpoints(folder, size)
    for method in methods:
        tools: list[Tool] = ["floor", "alloykit"]
        if method == "linear":
            tools += ["floor, synced", "alloykit --dry-run", "plain"]
        for tool in tools + ["mergekit"] * peer:
            yield ("speed", size, method, tool), JOBS[method], tool, checkpoints


def memory_runs(folder: Path, methods: Iterable[str]) -> Iterator[Run]:
    """One round of the second section."""
    for size in SIZES:
        checkpoints = made_checkpoints(folder, size)
        for method in methods:
            yield ("memory", size, method, "alloykit"), JOBS[method], "alloykit", checkpoints


def tiny_runs(folder: Path, peer: bool) -> Iterator[Run]:
    """One round of the third section."""
    for count in TINY:
        checkpoints = made_tiny(folder, count)
        tools: list[Tool] = ["alloykit"]
        tools += ["mergekit"] * (peer and count <= TINY_FOR_MERGEKIT)
        for tool in tools:
            yield ("tiny", str(count), "linear", tool), JOBS["linear"], tool, checkpoints


def cost_of(run: Run, arguments: argparse.Namespace) -> Cost:
    """Do one run in a fresh folder, with its inputs in the page cache, and clear up."""
    _, job, tool, checkpoints = run
    output = arguments.folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    threads = {"OMP_NUM_THREADS": str(arguments.peer_threads)}
    environment = threads if tool in ("mergekit", "plain") else {}
    for name in job.members + ("base",) * job.base:
        _warm(shard_files(checkpoints[name]))
    os.sync()
    try:
        return measured(
            command(tool, job, checkpoints, output, arguments.mergekit),
            {"HF_HUB_OFFLINE": "1", **environment},
        )
    finally:
        shutil.rmtree(output)
        os.sync()


def measure(runs: list[Run], repeats: int, arguments: argparse.Namespace) -> Results:
    """All runs, one round after the other."""
    costs: Results = {run[0]: [] for run in runs}
    for number in range(1, repeats + 1):
        for run in runs:
            cost = cost_of(run, arguments)
            costs[run[0]].append(cost)
            print(
                f"{number}/{repeats} {' '.join(run[0]):40s} cpu {cost.cpu:7.2f} s  "
                f"wall {cost.wall:7.2f} s  {cost.memory / 2**20:6.0f} MiB  load {cost.load:.1f}",
                flush=True,
            )
    return costs


def _warm(files: list[Path]) -> None:
    buffer = bytearray(1 << 22)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def load(path: Path) -> Results:
    """What earlier sections measured."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    return {tuple(each["run"]): [Cost(**cost) for cost in each["costs"]] for each in kept}


def save(path: Path, results: Results) -> None:
    """Keep it for other sections."""
    rows = [
        {"run": list(key), "costs": [asdict(cost) for cost in costs]}
        for key, costs in results.items()
    ]
    path.write_text(json.dumps(rows, indent=1))


def main() -> None:
    """Measure the sections asked for and write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints are kept")
    parser.add_argument("--mergekit", type=Path, help="the folder of mergekit's programs")
    parser.add_argument("--size", choices=SIZES, default="1.1", help="billions of parameters")
    parser.add_argument("--methods", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--sections", nargs="*", default=["speed", "memory", "tiny"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peer-threads", type=int, default=1,
        help="OMP_NUM_THREADS of mergekit and of the plain script (ours chooses by itself)",
    )  # fmt: skip
    parser.add_argument("--note", default="", help="a sentence about the machine for the table")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kept = arguments.folder / "results.json"
    results, peer = load(kept), arguments.mergekit is not None
    sections = {
        "speed": lambda: speed_runs(arguments.folder, arguments.size, arguments.methods, peer),
        "memory": lambda: memory_runs(arguments.folder, arguments.methods),
        "tiny": lambda: tiny_runs(arguments.folder, peer),
    }
    for section in arguments.sections:
        repeats = 1 if section == "memory" else arguments.repeats
        results |= measure(list(sections[section]()), repeats, arguments)
        save(kept, results)
    text = report(results, arguments.size, arguments.mergekit, arguments.note)
    OUTPUT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
