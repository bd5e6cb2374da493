"""Three of ten clients poisoned: what each aggregator is left with.

    python benchmarks/poisoning.py --data FOLDER

Claim: where 3 of 10 clients send their updates with the sign flipped and ten times as long, or
Gaussian noise, or NaN, or train on flipped labels, robust aggregators end within 3 points of their
own clean run, and FedAvg does not.

FOLDER holds the idx files of Fashion-MNIST. 6,000 training images are dealt evenly to 10 clients;
each round every client trains one epoch of SGD; test accuracy is the mean after each of the last 5
of 15 rounds (single rounds swing by some points), and of two seeds. FedAvg stands there twice: with
the checks that every round has by default, and with none, as it is written in most projects. No
setting was chosen by these figures. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alloykit.data.examples import as_examples
from alloykit.errors import AlloyError
from alloykit.federation.checks import Checks
from alloykit.federation.partitioning import iid
from alloykit.federation.poisoning import Attack
from alloykit.federation.rounds import run_rounds
from alloykit.federation.settings import Federation
from alloykit.training.rows import Rows
from alloykit.training.settings import Training
from federated_data import images, strided_cnn

OUTPUT = Path(__file__).parent / "output" / "poisoning.md"
CLIENTS, POISONED, ROUNDS, LAST, EXAMPLES = 10, 3, 15, 5, 6000
SEEDS = (0, 1)
LOCAL = Training(
    epochs=1, batch_size=32, learning_rate=0.05, weight_decay=0.0, schedule="constant",
    optimizer="sgd", momentum=0.9,
)  # fmt: skip
NO_CHECKS = Checks(values=False, examples_ratio=None, norm_ratio=None)

ATTACKS: Mapping[str, Attack | None] = {
    "clean": None,
    "sign flipped × 10": Attack("sign_flip", 10.0),
    "Gaussian noise": Attack("noise", 1.0),
    "NaN": Attack("nan"),
    "labels flipped": Attack("label_flip"),
}


@dataclass(frozen=True)
class Rule:
    """One line of the table: an aggregator with its parameters and checks."""

    name: str
    method: str
    parameters: Mapping[str, Any]
    checks: Checks = field(default_factory=Checks)


RULES = (
    Rule("FedAvg without checks", "fedavg", {}, NO_CHECKS),
    Rule("FedAvg", "fedavg", {}),
    Rule("norm clipping", "norm_clipping", {"max_norm": 1.0}),
    Rule("median", "median", {}),
    Rule("trimmed mean (0.3)", "trimmed_mean", {"trim": 0.3}),
    Rule("Krum (f = 3)", "krum", {"num_malicious": 3}),
    Rule("multi-Krum (f = 3)", "multi_krum", {"num_malicious": 3}),
    Rule("geometric median (RFA)", "rfa", {}),
    Rule("centred clipping", "centred_clipping", {"clip_norm": 1.0}),
)


def final_accuracy(rule: Rule, attack: Attack | None, seed: int, data: Path) -> float:
    """Mean test accuracy after each of the last rounds, in percent; 0 of models with NaN."""
    inputs, labels = images(data, "train", f":{EXAMPLES}")
    parts = iid(labels, CLIENTS, seed=seed)
    names = [f"client {number}" for number in range(CLIENTS)]
    partitions = {n: Rows(inputs[rows], labels[rows]) for n, rows in zip(names, parts, strict=True)}
    attacks = {} if attack is None else dict.fromkeys(names[:POISONED], attack)
    settings = Federation(
        rounds=ROUNDS, method=rule.method, parameters=rule.parameters, training=LOCAL,
        checks=rule.checks, attacks=attacks, seed=seed,
    )  # fmt: skip
    test = as_examples(images(data, "t10k", ":10000"), "test")
    try:
        # It is looked at after each round, and chooses nothing.
        history = run_rounds(strided_cnn(seed), partitions, settings, validation=test).history
    except AlloyError as error:
        print(f"{rule.name}, seed {seed}: {error}")
        return 0.0
    last = [0.0 if s is None or math.isnan(s) else s for s in history.scores[-LAST:]]
    return 100.0 * statistics.mean(last)


def _job(given: tuple[Rule, str, int, Path]) -> tuple[str, str, int, float]:
    rule, attack, seed, data = given
    torch.set_num_threads(1)
    return rule.name, attack, seed, final_accuracy(rule, ATTACKS[attack], seed, data)


def table(found: Mapping[tuple[str, str], list[float]]) -> str:
    """Test accuracy by aggregator and attack, with the loss to the clean run of that aggregator."""
    made = (
        f"Made by `python benchmarks/poisoning.py --data FOLDER`: Fashion-MNIST, {EXAMPLES:,} "
        f"images dealt evenly to {CLIENTS} clients, of whom {POISONED} are poisoned; mean test "
        f"accuracy in percent after each of the last {LAST} of {ROUNDS} rounds, mean of "
        f"{len(SEEDS)} seeds; in brackets what the attack costs against the clean run of the same "
        "aggregator. **Bold**: more than 3 points."
    )
    lines = ["# Three of ten clients poisoned", "", made, ""]
    lines += [f"| aggregator | {' | '.join(ATTACKS)} |", "|---|" + "---|" * len(ATTACKS)]
    for rule in RULES:
        clean = statistics.mean(found[rule.name, "clean"])
        cells = []
        for attack in ATTACKS:
            mean = statistics.mean(found[rule.name, attack])
            cell = f"{mean:.1f} ({mean - clean:+.1f})" if attack != "clean" else f"{mean:.1f}"
            cells.append(f"**{cell}**" if mean < clean - 3 else cell)
        lines.append(f"| {rule.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run every aggregator against every attack, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="idx files of Fashion-MNIST")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    jobs = [(r, a, s, given.data) for s in SEEDS for r in RULES for a in ATTACKS]
    found: dict[tuple[str, str], list[float]] = {}
    with ProcessPoolExecutor(2) as pool:
        for name, attack, seed, reached in pool.map(_job, jobs):
            print(f"{name}, {attack}, seed {seed}: {reached:.1f}", flush=True)
            found.setdefault((name, attack), []).append(reached)
    given.output.write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
