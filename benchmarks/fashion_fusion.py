"""Four CNNs on skewed partitions of Fashion-MNIST: how much of the gap to pooled data is closed.

Claim: the best fusion head closes at least 90 % of the gap between the best single member and a
model retrained on the union of the partitions, and a student of one member's size 80 %.

    python benchmarks/fashion_fusion.py --data FOLDER

FOLDER holds the four idx files of Fashion-MNIST. Members start from one initialisation and learn on
the first 20,000 training images, classes spread by a Dirichlet draw with concentration 0.3; images
50,000 on are validation, which fits and chooses; the 10,000 test images are read once. Students and
the retrained model learn on the union, as long as a member does. Everything after the members'
training is one call of ``alloykit.compare``. The table, mean and standard deviation over the seeds,
is written to benchmarks/output/fashion_fusion.md. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import alloykit
from alloykit.data.sources import load_split
from alloykit.data.split_spec import SplitSpec
from alloykit.federation.partitioning import dirichlet
from alloykit.training.settings import Training
from alloykit.types import Row
from fashion_models import cnn

OUTPUT = Path(__file__).parent / "output" / "fashion_fusion.md"
MEMBERS, CONCENTRATION, LEAST, EPOCHS = 4, 0.3, 20, 8
WANTED = (
    "average", "linear", "per_class", "concat", "attention", "attention_mean", "gated",
    "distill", "retrain",
)  # fmt: skip
CEILING, STUDENTS = "retrained on train", ("student of concat head", "student of average")
BEST = "best single (by validation)"
BEST_HEAD = "best fusion head (by validation)"


def split(data: Path, stem: str, rows: str) -> tuple[Tensor, Tensor]:
    """Images and labels of these rows."""
    images, labels = (
        str(next(data.resolve().glob(f"{stem}-{kind}-ubyte*")))
        for kind in ("images-idx3", "labels-idx1")
    )
    spec = SplitSpec(images=images, labels=labels, rows=rows)
    batches = list(load_split(spec, "train", data).batches())
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([y for _, y in batches])


def compared(data: Path, seed: int) -> list[Row]:
    """Train four members, and try everything."""
    inputs, labels = split(data, "train", ":20000")
    training = Training(epochs=EPOCHS, batch_size=128, seed=seed)
    torch.manual_seed(seed)
    start = cnn()
    members: dict[str, nn.Module] = {}
    dealt = dirichlet(labels, MEMBERS, seed, concentration=CONCENTRATION, least=LEAST)
    for number, rows in enumerate(dealt, start=1):
        began = time.perf_counter()
        members[f"part {number}"] = alloykit.retrain(
            copy.deepcopy(start), (inputs[rows], labels[rows]), start="given", training=training
        ).model
        counts = np.bincount(labels[rows].numpy(), minlength=10).tolist()
        print(f"seed {seed}, part {number}: {len(rows)} images, by class {counts}, "
              f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    found = alloykit.compare(
        members,
        validation=split(data, "train", "50000:60000"),
        test=split(data, "t10k", ":"),
        train=(inputs, labels),
        training=training,
        candidates=WANTED,
        on_overlap="drop",
        seed=seed,
    )
    failed = [f"{row.candidate}: {row.reason}" for row in found.rows if row.status == "failed"]
    if failed:
        raise SystemExit("\n".join(failed))
    return list(found.rows)


def figures(rows: list[Row]) -> dict[str, tuple[float, float, float]]:
    """Row -> accuracy in percent, log loss, and part of the gap closed in percent."""
    done = [row for row in rows if row.status == "done"]
    known = {row.candidate: row for row in done if row.family != "member"}
    known[BEST] = _best([row for row in done if row.family == "member"])
    known[BEST_HEAD] = _best([row for row in done if row.family == "fusion"])
    low, high = (known[name].test["accuracy"] for name in (BEST, CEILING))
    return {
        name: (
            100 * row.test["accuracy"],
            row.test["log_loss"],
            100 * (row.test["accuracy"] - low) / (high - low),
        )
        for name, row in known.items()
    }


def _best(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: row.validation["accuracy"])


def table(found: list[dict[str, tuple[float, float, float]]]) -> str:
    """The rows, best first."""
    seeds = len(found)
    names = [name for name in found[0] if all(name in each for each in found)]
    values = {name: np.array([each[name] for each in found]) for name in names}
    names.sort(key=lambda name: -values[name][:, 0].mean())
    closed = {name: values[name][:, 2].mean() for name in names}
    student = max(closed[name] for name in STUDENTS)
    lines = [
        "# Four CNNs on skewed partitions: how much of the gap is closed\n",
        (
            f"Made by `benchmarks/fashion_fusion.py`: Fashion-MNIST, {seeds} seeds, torch "
            f"{torch.__version__.partition('+')[0]}. Accuracy in percent on test ± standard "
            "deviation; the gap is from the best single member to the model retrained on the "
            "union.\n"
        ),
        f"- best fusion head: closes {closed[BEST_HEAD]:.1f} % (asked: 90): "
        + ("holds" if closed[BEST_HEAD] >= 90 else "**does not hold**"),
        f"- best student of one member's size: closes {student:.1f} % (asked: 80): "
        + ("holds" if student >= 80 else "**does not hold**"),
        "\n| | accuracy | log loss | closed % | by seed |",
        "|---|---:|---:|---:|---|",
    ]
    for name in names:
        accuracy, loss, gap = values[name].T
        spread = accuracy.std(ddof=1) if seeds > 1 else 0.0
        lines.append(
            f"| {name} | {accuracy.mean():.2f} ± {spread:.2f} | {loss.mean():.3f} | "
            f"{gap.mean():.1f} | {', '.join(f'{value:.1f}' for value in gap)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all seeds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    text = table([figures(compared(arguments.data, seed)) for seed in range(arguments.seeds)])
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
