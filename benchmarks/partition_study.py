"""Digits and letters on skewed partitions: every way to one better model, beside an older study.

Claim: heads, students and baselines made through the public API are at least as good as those of
an independent study with the same protocol (benchmarks/partition_figures.py holds its figures).

    python benchmarks/partition_study.py --letters FOLDER

FOLDER holds letter-recognition.data (UCI Letter Recognition, CC BY 4.0); digits come with
scikit-learn. Stratified splits: 20 % test, 12 % validation that no member saw, the rest spread over
four members by a class-wise Dirichlet draw with concentration 0.3. Inputs are standardised by the
union's mean and deviation. Members are MLPs from one common start (digits 64-32, 60 epochs, batch
32, step 2e-3; letters 128-64, 30 epochs, batch 128, step 3e-3; cosine, no decay); students learn
likewise. In a second part the members are four dissimilar architectures. The study does not say
what its small model is: one hidden layer of 32 (digits) and 48 (letters) comes nearest to it when
retrained on the union. Heads and weights see validation alone (the out-of-fold one: the
partitions); test is read once per row. The table goes to benchmarks/output/partition_study.md.
About twenty minutes.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import alloykit
from alloykit.federation.partitioning import dirichlet
from partition_figures import SEEDS as STUDY_SEEDS
from partition_figures import STUDY

OUTPUT = Path(__file__).parent / "output" / "partition_study.md"
MEMBERS, CONCENTRATION, LEAST = 4, 0.3, 20
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How the models of one data set look and learn."""

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float

    def training(self, seed: int) -> dict:
        """The settings of ``alloykit.retrain`` and ``alloykit.distill``."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": 0.0,
            "seed": seed,
        }


RECIPES = {"digits": Recipe((64, 32), 60, 32, 2e-3), "letters": Recipe((128, 64), 30, 128, 3e-3)}
SMALL = {"digits": (32,), "letters": (48,)}


@dataclass(frozen=True)
class Scene:
    """One data set split by one seed, and the members trained on it."""

    name: str
    seed: int
    validation: Split
    test: Split
    parts: dict[str, Split]
    starts: dict[str, nn.Module]
    members: dict[str, nn.Module]

    @property
    def union(self) -> Split:
        """All partitions together."""
        return (
            torch.cat([inputs for inputs, _ in self.parts.values()]),
            torch.cat([targets for _, targets in self.parts.values()]),
        )

    @property
    def counts(self) -> list[int]:
        """Examples of each partition."""
        return [len(targets) for _, targets in self.parts.values()]

    def training(self) -> dict:
        """How a model of the scene learns."""
        return RECIPES[self.name].training(self.seed)

    def blank(self, hidden: tuple[int, ...] | None = None) -> nn.Module:
        """A model that knows nothing; from another start than the members."""
        torch.manual_seed(1000 + self.seed)
        widths = [self.validation[0].shape[1], *(hidden or RECIPES[self.name].hidden)]
        return mlp(widths, int(self.union[1].max()) + 1)


def mlp(widths: list[int], classes: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def examples(name: str, letters: Path) -> tuple[np.ndarray, np.ndarray]:
    """All inputs and labels."""
    if name == "digits":
        inputs, targets = load_digits(return_X_y=True)
        return inputs.astype(np.float32), targets
    text = (letters / "letter-recognition.data").read_text()
    lines = [line.split(",") for line in text.splitlines() if not line.startswith("Letter")]
    inputs = np.array([[float(value) for value in line[1:]] for line in lines], np.float32)
    return inputs, np.array([ord(line[0]) - ord("A") for line in lines])


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Add what was computed."""
        return inputs + self.inner(inputs)


def dissimilar(name: str, width: int, classes: int) -> list[nn.Module]:
    """Four architectures for one task."""
    hidden = RECIPES[name].hidden[0]
    wide = nn.Sequential(
        nn.Linear(width, 2 * hidden), nn.BatchNorm1d(2 * hidden), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(2 * hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    if name == "digits":
        last: nn.Module = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(128, classes),
        )  # fmt: skip
    else:
        last = nn.Sequential(
            nn.Linear(width, 128), Residual(128), nn.ReLU(), Residual(128), nn.ReLU(),
            nn.Linear(128, classes),
        )  # fmt: skip
    return [mlp([width], classes), mlp([width, hidden], classes), wide, last]


def scene(setting: str, name: str, seed: int, letters: Path) -> Scene:
    """Split, spread, and train the members."""
    inputs, targets = examples(name, letters)
    rest, test, rest_y, test_y = train_test_split(
        inputs, targets, test_size=0.2, stratify=targets, random_state=seed
    )
    train, held, train_y, held_y = train_test_split(
        rest, rest_y, test_size=0.15, stratify=rest_y, random_state=seed
    )
    mean, spread = train.mean(0), np.where(train.std(0) > 0, train.std(0), 1.0)
    train, held, test = ((part - mean) / spread for part in (train, held, test))
    union = _split(train, train_y)
    parts = {
        f"part {place}": (union[0][rows], union[1][rows])
        for place, rows in enumerate(
            dirichlet(union[1], MEMBERS, seed, concentration=CONCENTRATION, least=LEAST), start=1
        )
    }
    torch.manual_seed(seed)
    recipe, classes = RECIPES[name], int(targets.max()) + 1
    if setting == "common start":
        built = [mlp([inputs.shape[1], *recipe.hidden], classes)] * MEMBERS
    else:
        built = dissimilar(name, inputs.shape[1], classes)
    starts = dict(zip(parts, built, strict=True))
    members = {
        part: alloykit.retrain(
            starts[part], data, start="given", training=recipe.training(seed)
        ).model
        for part, data in parts.items()
    }
    return Scene(name, seed, _split(held, held_y), _split(test, test_y), parts, starts, members)


def _split(inputs: np.ndarray, targets: np.ndarray) -> Split:
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets, dtype=torch.long)


Way = Callable[[Scene], nn.Module]


def best_single(given: Scene) -> nn.Module:
    """The member that is best on validation."""
    scores = {name: figures(member, given.validation)[0] for name, member in given.members.items()}
    return given.members[max(scores, key=scores.__getitem__)]


def weight_average(given: Scene, weights: list[int] | None = None) -> nn.Module:
    """The members' plain or weighted average."""
    return alloykit.average(list(given.members.values()), weights)


def pooled(rule: str, given: Scene, **parameters: object) -> nn.Module:
    """An ensemble of the members, fitted on validation where it learns."""
    return alloykit.ensemble(given.members, rule, validation=given.validation, **parameters)


def fused(head: str, given: Scene, **options: object) -> nn.Module:
    """A fusion of the members, its head trained on validation."""
    return alloykit.fuse(given.members, head, validation=given.validation, **options)


def out_of_fold(given: Scene) -> nn.Module:
    """A head trained on the partitions themselves, each owner's column by retrained copies."""

    def again(name: str, inputs: Tensor, targets: Tensor) -> nn.Module:
        training = given.training()
        start = alloykit.retrain(given.starts[name], (inputs, targets), training=training)
        return start.model

    return alloykit.fuse(given.members, "concat", train=given.parts, out_of_fold=again)


def by_examples(given: Scene) -> nn.Module:
    """Probabilities, each member weighed by its number of examples."""
    return alloykit.ensemble(given.members, "weighted", weights=given.counts)


def taught(teacher: Way, on: str, given: Scene, *, labels: bool, start: str = "blank") -> nn.Module:
    """A student of a teacher, on the union's inputs or on validation's."""
    student = {
        "blank": given.blank,
        "small": partial(given.blank, SMALL[given.name]),
        "average": partial(weight_average, given),
    }[start]()
    inputs, targets = given.union if on == "union" else given.validation
    done = alloykit.distill(
        student,
        teacher(given),
        train=(inputs, targets) if labels else inputs,
        alpha=0.5 if labels else 0.0,
        training=given.training(),
    )
    return done.student


def learned(on: str, given: Scene, *, start: str = "blank") -> nn.Module:
    """A model trained on labels alone."""
    data = given.union if on == "union" else given.validation
    if start == "average":
        model = alloykit.retrain(
            list(given.members.values()), data, start="average", training=given.training()
        )
    else:
        hidden = SMALL[given.name] if start == "small" else None
        model = alloykit.retrain(
            given.blank(hidden), data, start="given", training=given.training()
        )
    return model.model


average, concat = partial(pooled, "average"), partial(fused, "concat")
LOGITS = {"space": "logits"}
WAYS: dict[str, Way] = {
    "best single (by validation)": best_single,
    "weight average": weight_average,
    "weight average, by examples": lambda given: weight_average(given, given.counts),
    "average (probabilities)": average,
    "average (logits)": partial(pooled, "average", **LOGITS),
    "weighted by examples": by_examples,
    "weighted by accuracy": partial(pooled, "weighted", by="accuracy"),
    "vote": partial(pooled, "vote"),
    "average, then temperature": partial(pooled, "calibrated"),
    "weights for the log loss": partial(pooled, "weighted", by="log_loss"),
    "weights for the log loss (logits)": partial(pooled, "weighted", by="log_loss", **LOGITS),
    "greedy selection for accuracy": partial(pooled, "greedy_selection"),
    "log_pool head": partial(fused, "log_pool"),
    "concat head": concat,
    "concat head (hidden 64)": partial(fused, "concat", hidden=[64]),
    "attention head": partial(fused, "attention"),
    "attention_mean head": partial(fused, "attention_mean"),
    "concat head on features": partial(fused, "concat", source="features"),
    "concat head, out of fold": out_of_fold,
    "small student of average, union, no labels": partial(
        taught, average, "union", labels=False, start="small"
    ),
    "student of average, union, no labels": partial(taught, average, "union", labels=False),
    "student of average, validation, no labels": partial(
        taught, average, "validation", labels=False
    ),
    "student of average, validation, labels too": partial(
        taught, average, "validation", labels=True
    ),
    "weight average taught by average, validation, no labels": partial(
        taught, average, "validation", labels=False, start="average"
    ),
    "weight average taught by average, validation, labels too": partial(
        taught, average, "validation", labels=True, start="average"
    ),
    "small student of concat head, union, no labels": partial(
        taught, concat, "union", labels=False, start="small"
    ),
    "student of concat head, union, no labels": partial(taught, concat, "union", labels=False),
    "weight average taught by concat head, validation, no labels": partial(
        taught, concat, "validation", labels=False, start="average"
    ),
    "weight average fine-tuned on validation": partial(learned, "validation", start="average"),
    "trained on validation alone": partial(learned, "validation"),
    "retrained on the union": partial(learned, "union"),
    "small model retrained on the union": partial(learned, "union", start="small"),
}


def figures(model: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy in percent, and log loss."""
    inputs, targets = split
    with torch.no_grad():
        logs = copy.deepcopy(model).eval()(inputs).double().log_softmax(-1)
    right = float((logs.argmax(-1) == targets).double().mean())
    return 100 * right, float(nn.functional.nll_loss(logs, targets))


Job = tuple[str, str, int, Path]


def run(job: Job) -> tuple[str, str, dict[str, tuple[float, float]]]:
    """All rows of one setting, data set and seed."""
    torch.set_num_threads(1)
    setting, name, seed, letters = job
    began = time.perf_counter()
    given = scene(setting, name, seed, letters)
    found = {row: figures(WAYS[row](given), given.test) for row in STUDY[setting]}
    print(f"{setting}, {name}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    return setting, name, found


Results = dict[str, dict[str, list[dict[str, tuple[float, float]]]]]


def table(results: Results, seeds: int) -> str:
    """Ours beside the study's, and whether each holds."""
    lines = [
        "# Skewed partitions: ours beside an earlier study\n",
        (
            f"Made by `benchmarks/partition_study.py`: {seeds} seeds (the study: {STUDY_SEEDS}), "
            f"torch {torch.__version__.partition('+')[0]}. Accuracy in percent ± its standard "
            "deviation over seeds / log loss, on test. A row holds where our mean is not worse "
            "than the study's by more than one standard error of the difference of the two means "
            "(of log losses the study gave no deviation: ours is taken for both). Were chance the "
            "only difference, one comparison in six would miss."
        ),
    ]
    for setting, found in results.items():
        lines += [
            f"\n## Members: {setting}\n",
            "| | digits, ours | study | | letters, ours | study | |",
            "|---|---:|---:|---|---:|---:|---|",
        ]
        for row, study in STUDY[setting].items():
            cells = [row]
            for name in RECIPES:
                cells += _cells([each[row] for each in found[name]], study[name], seeds)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(
    ours: list[tuple[float, float]], study: tuple[float, float, float], seeds: int
) -> list[str]:
    values = np.array(ours)
    accuracy, loss = values.mean(0)
    spread, loss_spread = values.std(0, ddof=1) if seeds > 1 else (0.0, 0.0)
    allowed = np.sqrt(spread**2 / seeds + study[1] ** 2 / STUDY_SEEDS)
    allowed_loss = loss_spread * np.sqrt(1 / seeds + 1 / STUDY_SEEDS)
    # The study's numbers were rounded.
    missed = [
        word
        for word, bad in (
            ("accuracy", accuracy < study[0] - allowed - 0.05),
            ("log loss", loss > study[2] + allowed_loss + 0.005),
        )
        if bad
    ]
    return [
        f"{accuracy:.1f} ± {spread:.1f} / {loss:.2f}",
        f"{study[0]:.1f} ± {study[1]:.1f} / {study[2]:.2f}",
        f"**worse: {', '.join(missed)}**" if missed else "holds",
    ]


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """The longest ones first."""
    for name in reversed(RECIPES):
        for setting in STUDY:
            for seed in range(arguments.seeds):
                yield setting, name, seed, arguments.letters


def main() -> None:
    """Run all seeds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--letters", type=Path, required=True, help="folder of the letters")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        done = pool.map(run, jobs(arguments), chunksize=1)
    results = {
        setting: {
            name: [found for s, n, found in done if (s, n) == (setting, name)] for name in RECIPES
        }
        for setting in STUDY
    }
    text = table(results, arguments.seeds)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
