"""The table of the merge benchmark: what was asked, what was measured, on which machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from measured_process import Cost
from merge_runs import JOBS

Key = tuple[str, str, str, str]
"""Section, size, method, tool."""

Results = dict[Key, list[Cost]]

MIB = 2**20
ELEMENTWISE = ("linear", "dare_ties")
"""Methods without a survey; the others may hold more."""

MEMORY_LIMITS = {name: 250 if name in ELEMENTWISE else 600 for name in JOBS}
TIME_LIMITS = {
    "linear": 0.15, "ties": 0.1, "dare_ties": 0.25, "slerp": 0.25, "karcher": 0.25,
    "model_stock": 0.25,
}  # fmt: skip
WALL_OF_LINEAR, OVER_THE_FLOOR, TINY_RATIO = 0.2, 2.0, 0.1
TWICE, NOISE = 2.0, 1.1


class Claim(NamedTuple):
    """A limit and what was measured against it."""

    text: str
    limit: float
    measured: float
    unit: str = ""

    @property
    def row(self) -> str:
        """A line of the table."""
        verdict = "holds" if self.measured <= self.limit else "**does not hold**"
        return (
            f"| {self.text} | {self.limit:.3g}{self.unit} | {self.measured:.3g}{self.unit} "
            f"| {verdict} |\n"
        )


def report(results: Results, size: str, mergekit: Path | None, note: str) -> str:
    """The whole page in Markdown."""
    claims = "".join(claim.row for claim in _claims(results, size))
    rounds = [len(costs) for key, costs in results.items() if key[0] == "speed"]
    return (
        f"# Merging {size} billion parameters\n\n"
        "Made by `benchmarks/merge_speed.py`: a base and three fine-tunes in bfloat16, in shards; "
        f"{_machine()}; {_versions(mergekit)}. Page cache warm, `sync` before every run, runs "
        f"interleaved, medians of {min(rounds, default=0)}. The floor is `cat` of all inputs and "
        "`cp` of one output. CPU is user and system time of all processes; memory is anonymous "
        f"memory at its peak, sampled every 20 ms. {note}".rstrip()
        + "\n\n## Asked and measured\n\n| | at most | measured | |\n|---|---:|---:|---|\n"
        + claims
        + _speed(results, size)
        + _memory(results)
        + _tiny(results)
    )


def _claims(results: Results, size: str) -> Iterator[Claim]:
    def value(method: str, tool: str, what: Callable[[Cost], float]) -> float | None:
        return _middle(results.get(("speed", size, method, tool)), what)

    for method in JOBS:
        for name, what in (("CPU", _cpu), ("wall", _wall)):
            ours, theirs = (value(method, tool, what) for tool in ("alloykit", "mergekit"))
            limit = WALL_OF_LINEAR if (method, name) == ("linear", "wall") else TIME_LIMITS[method]
            if ours and theirs:
                yield Claim(f"{method}: {name} time over mergekit's", limit, ours / theirs)
    ours, start, floor = (
        value("linear", tool, _cpu) for tool in ("alloykit", "alloykit --dry-run", "floor")
    )
    if ours and start and floor:
        text = "linear: CPU time beyond that of a dry run, over the floor's"
        yield Claim(text, OVER_THE_FLOOR, (ours - start) / floor)
    yield from _memory_claims(results)
    yield from _tiny_claims(results)


def _memory_claims(results: Results) -> Iterator[Claim]:
    for method, limit in MEMORY_LIMITS.items():
        peaks = [
            max(cost.memory for cost in costs) / MIB
            for (_, _, name, tool), costs in results.items()
            if (name, tool) == (method, "alloykit")
        ]
        if peaks:
            yield Claim(f"{method}: peak memory at any size", limit, max(peaks), " MiB")


def _tiny_claims(results: Results) -> Iterator[Claim]:
    def value(count: int, tool: str) -> float | None:
        return _middle(results.get(("tiny", str(count), "linear", tool)), _cpu)

    ours, theirs = value(4000, "alloykit"), value(4000, "mergekit")
    if ours and theirs:
        yield Claim("4,000 small tensors: CPU time over mergekit's", TINY_RATIO, ours / theirs)
    start, double = value(1, "alloykit"), value(8000, "alloykit")
    if ours and start and double:
        text = "8,000 small tensors over 4,000, beyond start-up (2, and a tenth for noise)"
        yield Claim(text, TWICE * NOISE, (double - start) / (ours - start))


def _speed(results: Results, size: str) -> str:
    rows = ""
    for (section, of, method, tool), costs in results.items():
        if (section, of) != ("speed", size):
            continue
        ratios = [
            _ratio(costs, results.get((section, of, method, other)), what)
            for other, what in (("mergekit", _cpu), ("mergekit", _wall), ("floor", _cpu))
        ]
        cpu = [cost.cpu for cost in costs]
        rows += (
            f"| {method} | {tool} | {median(cpu):.2f} ({min(cpu):.2f}–{max(cpu):.2f}) "
            f"| {_middle(costs, _wall):.2f} | {' | '.join(ratios)} "
            f"| {max(cost.memory for cost in costs) / MIB:.0f} | {_loads(costs)} |\n"
        )
    head = (
        "\n## Each tool\n\n| method | tool | CPU s (range) | wall s | CPU / mergekit "
        "| wall / mergekit | CPU / floor | MiB | load |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    return head + rows if rows else ""


def _memory(results: Results) -> str:
    sizes = list(dict.fromkeys(key[1] for key in results if key[0] == "memory"))
    if not sizes:
        return ""
    head = "| method | " + " | ".join(f"{size} billion" for size in sizes) + " |\n"
    rows = ""
    for method in JOBS:
        costs = [results.get(("memory", size, method, "alloykit")) for size in sizes]
        cells = [f"{max(c.memory for c in each) / MIB:.0f}" if each else "" for each in costs]
        rows += f"| {method} | {' | '.join(cells)} |\n"
    return (
        "\n## Peak memory of alloykit by size, MiB\n\n"
        + head + "|---|" + "---:|" * len(sizes) + "\n" + rows
    )  # fmt: skip


def _tiny(results: Results) -> str:
    rows = ""
    for (section, count, method, tool), costs in results.items():
        if section == "tiny":
            ratio = _ratio(costs, results.get((section, count, method, "mergekit")), _cpu)
            rows += (
                f"| {int(count):,} | {tool} | {_middle(costs, _cpu):.2f} "
                f"| {_middle(costs, _wall):.2f} | {ratio} | {_loads(costs)} |\n"
            )
    head = (
        "\n## Small tensors: three files, linear\n\n| tensors | tool | CPU s | wall s "
        "| CPU / mergekit | load |\n|---:|---|---:|---:|---:|---:|\n"
    )
    return head + rows if rows else ""


def _cpu(cost: Cost) -> float:
    return cost.cpu


def _wall(cost: Cost) -> float:
    return cost.wall


def _middle(costs: list[Cost] | None, what: Callable[[Cost], float]) -> float | None:
    return median(map(what, costs)) if costs else None


def _ratio(costs: list[Cost], others: list[Cost] | None, what: Callable[[Cost], float]) -> str:
    other = _middle(others, what)
    if costs is others or not other:
        return ""
    return f"{median(map(what, costs)) / other:.3f}"


def _loads(costs: list[Cost]) -> str:
    loads = [cost.load for cost in costs]
    return f"{min(loads):.1f}–{max(loads):.1f}"


def _machine() -> str:
    described = Path("/proc/cpuinfo").read_text()
    model = described.partition("model name\t: ")[2].partition("\n")[0].replace("(R)", "")
    kind = "virtual " if " hypervisor" in described else ""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} {kind}cores of an {model or platform.machine()}, "
        f"{memory:.0f} GiB of memory, {platform.system()} {platform.release().partition('-')[0]}"
    )


def _versions(mergekit: Path | None) -> str:
    ours = [f"{name} {importlib.metadata.version(name)}" for name in ("alloykit", "torch")]
    if mergekit is not None:
        ask = "import importlib.metadata as m; print(m.version('mergekit'), m.version('torch'))"
        said = subprocess.run(
            [mergekit / "python", "-c", ask], capture_output=True, text=True, check=True
        )
        peer, torch = said.stdout.split()
        ours.append(f"mergekit {peer} with torch {torch}")
    return ", ".join(ours)
