"""Four CNNs on skewed partitions of Fashion-MNIST, compared through the command line.

Claim: with members that saw different classes, averaging weights fails and combining predictions
helps; the table says by how much, at which cost.

    python benchmarks/fashion_partitions.py --data FOLDER

FOLDER holds the four idx files of Fashion-MNIST, gzipped or not. Members are trained on the first
20,000 training images, classes spread by a Dirichlet draw with concentration 0.3; images 50,000 on
are validation; the 10,000 test images are read once. About five minutes on two cores. The table is
written to benchmarks/output/fashion_partitions.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml

import alloykit
from alloykit.data.sources import load_split
from alloykit.data.split_spec import SplitSpec
from alloykit.federation.partitioning import dirichlet
from alloykit.training.fitting import fit
from fashion_models import cnn

HERE = Path(__file__).parent
MEMBERS, CONCENTRATION, LEAST, EPOCHS = 4, 0.3, 20, 3


def train_members(data: Path, folder: Path, seed: int) -> list[dict[str, object]]:
    """Train and save the members; returns their entries in the study."""
    spec = SplitSpec(
        images=_file(data, "train-images"), labels=_file(data, "train-labels"), rows=":20000"
    )
    split = load_split(spec, "train", data)
    batches = list(split.batches())
    inputs = torch.cat([inputs for inputs, _ in batches])
    labels = torch.cat([targets for _, targets in batches])
    entries = []
    dealt = dirichlet(labels, MEMBERS, seed, concentration=CONCENTRATION, least=LEAST)
    for number, rows in enumerate(dealt, start=1):
        torch.manual_seed(seed + number)
        model = cnn()
        started = time.perf_counter()
        fit(model, inputs[rows], labels[rows], epochs=EPOCHS, batch_size=128, seed=seed)
        path = folder / f"hospital-{number}.safetensors"
        alloykit.save_checkpoint(model, path, overwrite=True)
        counts = np.bincount(labels[rows].numpy(), minlength=10).tolist()
        seconds = time.perf_counter() - started
        print(f"{path.stem}: {len(rows)} images, by class {counts}, {seconds:.0f} s")
        entries.append({"name": path.stem, "checkpoint": path.name})
    return entries


def write_study(data: Path, folder: Path, members: list[dict[str, object]]) -> Path:
    """The study file that the command line is given."""
    train = {"images": _file(data, "train-images"), "labels": _file(data, "train-labels")}
    study = {
        "title": "Fashion-MNIST: four CNNs trained on skewed partitions",
        "architecture": "fashion_models:cnn",
        "members": members,
        "data": {
            "train": {**train, "rows": "0:2000"},
            "validation": {**train, "rows": "50000:60000"},
            "test": {"images": _file(data, "t10k-images"), "labels": _file(data, "t10k-labels")},
        },
        "on_overlap": "drop",
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def table(result: dict, seed: int) -> str:
    """The leaderboard as Markdown."""
    done = [row for row in result["rows"] if row["status"] == "done"]
    done.sort(key=lambda row: -row["validation"]["accuracy"])
    head = (
        "# Four CNNs on skewed partitions of Fashion-MNIST\n\n"
        f"Made by `benchmarks/fashion_partitions.py --seed {seed}` through `alloykit compare`, "
        f"torch {torch.__version__.partition('+')[0]}.\nAccuracy in percent; the gain is over the "
        "best single member on test, paired, with its 95 % interval.\n\n"
        "| candidate | validation | test | gain | log loss | ECE | models run |\n"
        "|---|---:|---:|---:|---:|---:|---:|\n"
    )
    left_out = [row for row in result["rows"] if row["status"] != "done"]
    return (
        head
        + "".join(_line(row) for row in done)
        + f"\nRecommendation: **{result['recommendation']}**. {result['reason']}\n\n"
        + "".join(f"- {r['candidate']}: {r['status']}. {r['reason']}\n" for r in left_out)
    )


def _line(row: dict) -> str:
    test, gain = row["test"], row["improvement"]
    gained = "best single"
    if gain is not None:
        gained = "{value:+.2f} ({low:+.2f} to {high:+.2f})".format(
            **{end: 100 * gain[end] for end in ("value", "low", "high")}
        )
    cells = [
        row["candidate"], f"{100 * row['validation']['accuracy']:.2f}",
        f"{100 * test['accuracy']:.2f}", gained, f"{test['log_loss']:.3f}",
        f"{100 * test['ece']:.1f}", str(row["costs"]["forward_passes"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def _file(data: Path, stem: str) -> str:
    kind = "idx3" if "images" in stem else "idx1"
    return str(next(data.resolve().glob(f"{stem}-{kind}-ubyte*")))


def main() -> None:
    """Train, compare through the command line, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = HERE / "output" / "work"
    folder.mkdir(parents=True, exist_ok=True)
    study = write_study(
        arguments.data, folder, train_members(arguments.data, folder, arguments.seed)
    )
    command = [sys.executable, "-m", "alloykit.cli", "compare", str(study), "--json", "--overwrite"]
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    text = table(json.loads(done.stdout), arguments.seed)
    (HERE / "output" / "fashion_partitions.md").write_text(text)
    print(text)
    print(f"alloykit compare took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
