"""How exact every merge method is in bfloat16: its error over that of one correct rounding.

    python benchmarks/merge_accuracy.py [--mergekit-python PATH/TO/ENVIRONMENT/bin/python]

Every registered method merges 1024 x 1024 matrices of bfloat16 through `alloykit.merge`, and the
same values in float64. The result in float64, rounded once to bfloat16, is the best there can be;
its root-mean-square distance from float64 is the unit. 1.00 is perfect; at most 1.05 is claimed.
Methods that are simple enough are also held against plain formulas in float64 that share no code
with ours. Random methods draw the same numbers in both, because the seed is the same. With
mergekit's Python, its own figures (its bfloat16 against its float64) stand beside ours.
The table is written to benchmarks/output/merge_accuracy.md.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import alloykit
from alloykit.registry import Entry, merge_methods
from merge_formulas import FORMULAS

HERE = Path(__file__).parent
SIDE, DEVIATION, CORRELATION, MEMBERS = 1024, 0.02, 0.5, 3
DELTAS = (5e-4, 2e-3)
LIMIT, SAME = 1.05, 1e-6
"""The claim; and how far, over the RMS of the result's move, a formula may be from ours."""

PARAMETERS: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"density": 0.5},
    "breadcrumbs_ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5},
    "della_linear": {"density": 0.5},
    "exponential": {"decay": 0.9},
    "interpolate": {"alpha": 0.3},
    "nearswap": {"t": 1e-4},
    "sce": {"select_topk": 0.5},
    "slerp": {"t": 0.3},
    "ties": {"density": 0.5},
}
"""Where the defaults would leave something of the method out."""


@dataclass(frozen=True)
class Sample:
    """Matrices to merge, in bfloat16, and statistics of them."""

    base: Tensor
    members: tuple[Tensor, ...]
    stats: Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Figures:
    """Of one method on one sample.

    Attributes:
        error: RMS error over that of one correct rounding.
        correct: Share of the results that are correctly rounded.
        formula: RMS distance in float64 from the plain formula, over the RMS of the move away from
            the first member or the base; None where there is no formula.
    """

    error: float
    correct: float
    formula: float | None


def sample(delta: float) -> Sample:
    """A base, and members whose task vectors have this RMS and correlate by one half."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    base, shared = DEVIATION * normal(SIDE, SIDE), normal(SIDE, SIDE)
    members = tuple(
        base + delta * (CORRELATION**0.5 * shared + (1 - CORRELATION) ** 0.5 * normal(SIDE, SIDE))
        for _ in range(MEMBERS)
    )
    inputs = [normal(4 * SIDE, SIDE) for _ in range(MEMBERS)]
    stats = {
        "fisher": tuple(normal(SIDE, SIDE) ** 2 + 1e-3 for _ in range(MEMBERS)),
        "gram": tuple(each.T @ each / len(each) for each in inputs),
    }
    return Sample(base.bfloat16(), tuple(each.bfloat16() for each in members), stats)


def merged(entry: Entry, values: Sample, dtype: torch.dtype) -> Tensor:
    """One merge through the public function, with inputs of this dtype."""
    allowed = entry.contract["members"]
    count = MEMBERS if MEMBERS in allowed else allowed[0]
    needs = entry.contract["needs"]
    names = ("one", "two", "three")[:count]
    models = {n: {"w": t.to(dtype)} for n, t in zip(names, values.members, strict=False)}
    stats = {kind: [{"w": t} for t in values.stats[kind][:count]] for kind in needs - {"base"}}
    return alloykit.merge(
        models,
        entry.name,
        base={"w": values.base.to(dtype)} if "base" in needs else None,
        parameters=PARAMETERS.get(entry.name),
        stats=stats or None,
    )["w"]


def figures(entry: Entry, values: Sample) -> Figures:
    """Merge in bfloat16 and in float64, and compare."""
    ours, exact = (merged(entry, values, dtype) for dtype in (torch.bfloat16, torch.float64))
    best = exact.to(torch.bfloat16)
    # A method that only copies or selects makes no error at all, and neither does rounding.
    wrong, unavoidable = rms(ours - exact), rms(best - exact)
    error = wrong / unavoidable if unavoidable else 1.0 + wrong
    return Figures(
        error, float((ours == best).double().mean()), _from_formula(entry, values, exact)
    )


def _from_formula(entry: Entry, values: Sample, exact: Tensor) -> float | None:
    if entry.name not in FORMULAS:
        return None
    members = [member.double() for member in values.members]
    stats = {kind: [each.double() for each in of] for kind, of in values.stats.items()}
    defaults = {
        name: parameter.default
        for name, parameter in entry.parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    parameters = defaults | PARAMETERS.get(entry.name, {})
    told = FORMULAS[entry.name](members, values.base.double(), stats, parameters)
    move = rms(exact - members[0]) or rms(exact - values.base)
    return rms(told - exact) / move


def rms(values: Tensor) -> float:
    """Root of the mean square, in float64."""
    return float(values.double().square().mean().sqrt())


def mergekits(python: Path, samples: Mapping[float, Sample]) -> dict[str, dict[str, list[float]]]:
    """What mergekit makes of them: delta -> method -> error and share correctly rounded."""
    found = {}
    for delta, values in samples.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sample.safetensors"
            tensors = {str(i): each for i, each in enumerate(values.members)}
            save_file({"base": values.base, **tensors}, path)
            script = str(HERE / "merge_accuracy_mergekit.py")
            done = subprocess.run(
                [python, script, path, json.dumps(PARAMETERS)], capture_output=True, text=True
            )
        if done.returncode:
            sys.exit(done.stderr)
        found[str(delta)] = json.loads(done.stdout)
    return found


def table(
    ours: Mapping[str, Mapping[float, Figures]], theirs: Mapping[str, Mapping[str, list[float]]]
) -> str:
    """Everything in Markdown."""
    worst = max(each.error for of in ours.values() for each in of.values())
    told = [e.formula for of in ours.values() for e in of.values() if e.formula is not None]
    verdict = "holds" if worst <= LIMIT and max(told, default=0.0) <= SAME else "does not hold"
    marks = " | ".join(f"{delta:g}" for delta in DELTAS)
    lines = [
        "# Accuracy of merging in bfloat16\n\n"
        "Made by `benchmarks/merge_accuracy.py`: matrices of 1024 x 1024, deviation 0.02, task "
        f"vectors of RMS {' and '.join(f'{delta:g}' for delta in DELTAS)}. Error is the RMS "
        "distance from float64 over that of one correct rounding; correct is the share of results "
        "that are correctly rounded, in percent; formula is the distance of float64 from a plain "
        "formula, relative to how far the merge moved.\n\n"
        f"The largest error is {worst:.3f}; at most {LIMIT} was asked for: it {verdict}.\n\n"
        f"| method | error {marks} | correct {marks} | formula | mergekit's error {marks} "
        f"| correct {marks} |\n" + "|---|" + "---:|" * (4 * len(DELTAS) + 1) + "\n"
    ]
    for name, of in ours.items():
        cells = [f"{of[delta].error:.3f}" for delta in DELTAS]
        cells += [f"{100 * of[delta].correct:.2f}" for delta in DELTAS]
        distances = [of[delta].formula for delta in DELTAS]
        cells.append(
            "" if distances[0] is None else f"{max(d for d in distances if d is not None):.0e}"
        )
        peer = [theirs.get(str(delta), {}).get(name) for delta in DELTAS]
        cells += [f"{each[0]:.2f}" if each else "" for each in peer]
        cells += [f"{100 * each[1]:.1f}" if each else "" for each in peer]
        lines.append(f"| {name} | {' | '.join(cells)} |\n")
    return "".join(lines)


def main() -> None:
    """Measure every registered method and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mergekit-python", type=Path, help="the Python that has mergekit")
    arguments = parser.parse_args()
    samples = {delta: sample(delta) for delta in DELTAS}
    ours = {}
    for entry in merge_methods.entries():
        ours[entry.name] = {delta: figures(entry, values) for delta, values in samples.items()}
        print(entry.name, *(f"{each.error:.3f}" for each in ours[entry.name].values()), flush=True)
    theirs = mergekits(arguments.mergekit_python, samples) if arguments.mergekit_python else {}
    text = table(ours, theirs)
    (HERE / "output" / "merge_accuracy.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
