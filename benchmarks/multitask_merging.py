"""Four fine-tunes for four tasks merged into one model, by every method for that.

Claim: methods that see a weight as a matrix (TSV-M), or know its inputs (RegMean), keep more of all
tasks than task arithmetic with a tuned scale, and that no less than the mean but for noise.

    python benchmarks/multitask_merging.py --data FOLDER

FOLDER holds mnist/ and fashion-mnist/ with their idx files. Each is split into the classes 0-4 and
5-9. An MLP with a head per task starts from 200 images a task; its backbone is fine-tuned on 15,000
images of one task at a time; the four results are merged. 1,000 images a task choose each method's
parameter, the test images report. About three minutes a seed and start on one core; the tables are
written to benchmarks/output/multitask_merging.md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import alloykit
from multitask_models import TASKS, Data, MultiTask, accuracy, joined, read_data, trained

OUTPUT = Path(__file__).parent / "output" / "multitask_merging.md"
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
FEW = 64
CLAIM = ("tsv_m", "regmean", "task_arithmetic", "linear")


ABOUT = """# Four fine-tunes merged into one model

Made by `benchmarks/multitask_merging.py`, torch {torch}. Tasks: {tasks}.
Mean test accuracy over the four tasks in percent, mean ± standard deviation over the seeds {seeds};
"kept" is relative to the individual models. "As is" takes the method's defaults, "tuned" the value
that 1,000 validation images a task choose.

The order TSV-M > RegMean > task arithmetic > mean comes from a study of six tasks, two of them
CIFAR-10, whose start of 200 images a task reached 84 % of the individual models. Here the same
start reaches more; the second table starts from fewer images, so that more is to be merged. What
the order depends on:

- Task arithmetic > mean: with four tasks the mean is task arithmetic at a scale of 0.25. Near a
  good start validation chooses 0.2 or 0.3, which is the mean but for noise; farther away it chooses
  0.4 or 0.5, and gains on every seed.
- TSV-M > RegMean: RegMean knows the inputs. From 1,000 images a task it is ahead of TSV-M on nearly
  every seed; from 64 images it is behind on average.
- RegMean > task arithmetic, and TSV-M > task arithmetic: on every seed, from either start.
"""


@dataclass(frozen=True)
class Candidate:
    """A merge method, what is fixed, and what validation chooses.

    Attributes:
        title: What the table calls it.
        method: Registered name.
        fixed: Parameters by hand.
        parameter: The one to choose, or "".
        values: What to try.
        stats: Kind of statistics that it is given, or "".
    """

    title: str
    method: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    parameter: str = "scale"
    values: Sequence[float] = SCALES
    stats: str = ""


CANDIDATES = (
    Candidate("mean", "linear", parameter=""),
    Candidate("task arithmetic", "task_arithmetic"),
    Candidate("TIES, density 0.2", "ties", {"density": 0.2, "scope": "model"}),
    Candidate("DARE, density 0.5", "dare_linear", {"density": 0.5}),
    Candidate("breadcrumbs", "breadcrumbs"),
    Candidate("Fisher, exact", "fisher", parameter="", stats="fisher"),
    Candidate(
        "RegMean", "regmean", {}, "reduce_non_diagonal", (0.1, 0.3, 0.5, 0.7, 0.9, 1.0), "gram"
    ),
    Candidate(f"RegMean, {FEW} images", "regmean", parameter="", stats="few gram"),
    Candidate("RegMean++", "regmean", parameter="", stats="merged gram"),
    Candidate("TSV-M", "tsv_m"),
    Candidate("Iso-C", "iso_c"),
    Candidate("Iso-CTS", "iso_cts"),
    Candidate("WUDI", "wudi"),
)


@dataclass(frozen=True)
class Result:
    """Mean accuracy over the tasks on test, as is and with the chosen value."""

    plain: float
    tuned: float
    value: float | None = None


def collected(members: list[MultiTask], data: Data) -> dict[str, list[Any]]:
    """Fisher diagonals and Gram matrices of every member on its own task."""
    found = {kind: alloykit.stats(members, data.statistics, kind) for kind in ("fisher", "gram")}
    found["few gram"] = alloykit.stats(members, data.statistics, "gram", examples=FEW)
    found["merged gram"] = alloykit.stats(members, data.statistics, "gram", through_merged=True)
    return found


def measured(
    candidate: Candidate, members: list[MultiTask], base: MultiTask, data: Data, stats: Any
) -> Result:
    """Merge as is, then with the parameter that validation chooses."""
    kind = candidate.stats.rpartition(" ")[2]
    given: dict[str, Any] = {
        "base": base,
        "stats": {kind: stats[candidate.stats]} if kind else None,
        "parameters": candidate.fixed,
    }
    plain = _mean(alloykit.merge(members, candidate.method, **given), data)
    if not candidate.parameter:
        return Result(plain, plain)
    found = alloykit.tune(
        members, candidate.method, candidate.parameter, candidate.values,
        validation=joined(data.validation), **given,
    )  # fmt: skip
    chosen = found.choice.parameters[candidate.parameter]
    return Result(plain, _mean(found.model, data), chosen)


def _mean(model: nn.Module, data: Data) -> float:
    return statistics.fmean(accuracy(model, data.test))


def one_seed(folder: Path, seed: int, start_images: int) -> dict[str, Result]:
    """All candidates on the members of one seed."""
    started = time.perf_counter()

    def tell(what: str) -> None:
        print(f"{start_images} images, seed {seed}: {what} "
              f"({time.perf_counter() - started:.0f} s)", flush=True)  # fmt: skip

    data = read_data(folder, seed, start_images)
    base, members, joint = trained(data, seed)
    own = [accuracy(m, [s])[0] for m, s in zip(members, data.test, strict=True)]
    results = {
        "the start": _as_is(_mean(base, data)),
        "individual": _as_is(statistics.fmean(own)),
        "joint": _as_is(_mean(joint, data)),
    }
    tell("trained")
    stats = collected(members, data)
    tell("statistics")
    for candidate in CANDIDATES:
        found = measured(candidate, members, base, data, stats)
        results[candidate.title] = found
        tell(f"{candidate.title:20s} {found.plain:6.2f} {found.tuned:6.2f} {found.value}")
    return results


def _as_is(value: float) -> Result:
    return Result(value, value)


def table(start_images: int, seeds: Sequence[int], results: Sequence[Mapping[str, Result]]) -> str:
    """The results from one start as Markdown."""
    lines = [
        f"## From a start of {start_images} images a task\n",
        "| method | as is | tuned | kept | chosen values |",
        "|---|---:|---:|---:|---|",
    ]
    for title in results[0]:
        lines.append(_row(title, [result[title] for result in results], results))
    return "\n".join([*lines, "", *_claim(seeds, results), ""])


def _row(title: str, each: Sequence[Result], results: Sequence[Mapping[str, Result]]) -> str:
    individual = statistics.fmean(result["individual"].tuned for result in results)
    tuned = [result.tuned for result in each]
    values = [f"{result.value:g}" for result in each if result.value is not None]
    parameter = next((c.parameter for c in CANDIDATES if c.title == title), "")
    chosen = f"{parameter} {', '.join(values)}" if values else ""
    kept = f"{100 * statistics.fmean(tuned) / individual:.1f}"
    cells = [
        title,
        _spread([r.plain for r in each]),
        _spread(tuned) if values else "",
        kept,
        chosen,
    ]
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def _claim(seeds: Sequence[int], results: Sequence[Mapping[str, Result]]) -> list[str]:
    """Whether the order of the claim holds, seed by seed."""
    titles = [next(c.title for c in CANDIDATES if c.method == method) for method in CLAIM]
    lines = [f"{' > '.join(titles)}, tuned:\n"]
    every = [[result[title].tuned for title in titles] for result in results]
    for seed, values in zip(seeds, every, strict=True):
        holds = all(a > b for a, b in itertools.pairwise(values))
        lines.append(
            f"- seed {seed}: {', '.join(f'{value:.2f}' for value in values)} "
            f"{'holds' if holds else 'does not hold'}"
        )
    for k, (above, below) in enumerate(itertools.pairwise(titles)):
        times = sum(values[k] > values[k + 1] for values in every)
        lines.append(f"- {above} > {below}: on {times} of {len(every)} seeds")
    return lines


def main() -> None:
    """Train, merge, measure, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of mnist/, fashion-mnist/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", type=int, nargs="+", default=[200, 40])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = [
        table(
            images, arguments.seeds, [one_seed(arguments.data, s, images) for s in arguments.seeds]
        )
        for images in arguments.starts
    ]
    about = ABOUT.format(
        torch=torch.__version__.partition("+")[0],
        tasks=", ".join(TASKS),
        seeds=", ".join(map(str, arguments.seeds)),
    )
    OUTPUT.write_text("\n".join([about, *tables]))
    print(OUTPUT.read_text())


if __name__ == "__main__":
    main()
