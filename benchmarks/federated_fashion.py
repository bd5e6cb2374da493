"""What not moving the data costs: rounds, one-shot combinations and the union, side by side.

    python benchmarks/federated_fashion.py --data FOLDER

Fashion-MNIST, 10 clients whose classes are spread by a Dirichlet draw of concentration 0.3. Rounds:
FedAvg, FedProx, FedAdam and FedDF. One shot, clients trained once: the average of their weights, of
weights that were aligned first (clients from unlike starts), the ensemble of their probabilities,
and FedDF from the average. The ceiling is one model retrained on the union. FOLDER holds the idx
files: 6,000 training images are the clients', 2,000 others the server's unlabelled ones. Settings
are the same for all rounds and were not tuned; test accuracy is looked at after each round and
chooses nothing. Three seeds; about 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import alloykit
from alloykit.alignment.aligning import aligned
from alloykit.data.examples import Examples, as_examples
from alloykit.evaluation.predicting import predict
from alloykit.federation.feddf import answers, distil, pooled
from alloykit.federation.partitioning import dirichlet
from alloykit.federation.round_history import FederationHistory
from alloykit.federation.round_picture import picture
from alloykit.federation.rounds import run_rounds
from alloykit.federation.settings import Federation
from alloykit.training.loop import train
from alloykit.training.losses import loss_of
from alloykit.training.rows import Rows
from alloykit.training.settings import Training
from federated_data import accuracy, images, strided_cnn

OUTPUT = Path(__file__).parent / "output"
CLIENTS, CONCENTRATION, EXAMPLES, UNLABELLED = 10, 0.3, 6000, 2000
ROUNDS, ALONE = 30, 20
SEEDS = (0, 1, 2)
LAST = 5
LOCAL = Training(
    epochs=1, batch_size=32, learning_rate=0.05, weight_decay=0.0, schedule="constant",
    optimizer="sgd",
)  # fmt: skip
DISTILLATION = Training(epochs=2, batch_size=64, learning_rate=1e-3, weight_decay=0.0)
ROUNDED: Mapping[str, Federation] = {
    "FedAvg": Federation(rounds=ROUNDS, training=LOCAL),
    "FedProx (mu 0.01)": Federation(rounds=ROUNDS, training=LOCAL, proximal=0.01),
    "FedAdam (0.01)": Federation(
        rounds=ROUNDS, training=LOCAL, method="fedadam", parameters={"server_learning_rate": 0.01}
    ),
    "FedDF": Federation(rounds=ROUNDS, training=LOCAL, distillation=DISTILLATION),
}


@dataclass(frozen=True, eq=False)
class Scene:
    """The data of one seed.

    Attributes:
        partitions: Client -> its rows.
        unlabelled: The server's own images.
        test: The test split.
        seed: Of everything.
    """

    partitions: Mapping[str, Rows]
    unlabelled: Examples
    test: Examples
    seed: int

    def score(self, outputs: Tensor) -> float:
        """Test accuracy in percent."""
        return accuracy(outputs, self.test.targets)


def scene(data: Path, seed: int) -> Scene:
    """Deal the images to clients."""
    inputs, labels = images(data, "train", f":{EXAMPLES}")
    parts = dirichlet(labels, CLIENTS, concentration=CONCENTRATION, seed=seed)
    held = images(data, "train", f"{EXAMPLES}:{EXAMPLES + UNLABELLED}")
    return Scene(
        {f"client {n}": Rows(inputs[rows], labels[rows]) for n, rows in enumerate(parts)},
        as_examples(held, "train"),
        as_examples(images(data, "t10k", ":10000"), "test"),
        seed,
    )


def rounds(given: Scene) -> dict[str, FederationHistory]:
    """Every federation that goes in rounds."""
    return {
        name: run_rounds(
            strided_cnn(given.seed),
            given.partitions,
            replace(settings, seed=given.seed),
            validation=given.test,
            unlabelled=given.unlabelled if settings.distillation else None,
        ).history
        for name, settings in ROUNDED.items()
    }


def alone(given: Scene, starts: Sequence[int]) -> list[nn.Module]:
    """Each client's model, trained on its own rows only."""
    models = []
    for start, rows in zip(starts, given.partitions.values(), strict=True):
        models.append(strided_cnn(start))
        training = replace(LOCAL, epochs=ALONE, seed=given.seed)
        train(models[-1], rows, loss_of("classification"), training)
    return models


def one_shot(given: Scene) -> dict[str, float]:
    """What can be made of clients that trained once; test accuracy by method."""
    same = alone(given, [given.seed] * CLIENTS)
    unlike = alone(given, [1000 * given.seed + n for n in range(CLIENTS)])
    sizes = [float(len(rows)) for rows in given.partitions.values()]
    averaged = alloykit.average(same, weights=sizes)
    probabilities = torch.stack([predict(m, given.test).softmax(1) for m in same]).mean(0)
    seen = [answers(model, given.unlabelled, "classification") for model in same]
    student = alloykit.average(same, weights=sizes)
    for parameter in student.parameters():
        parameter.requires_grad_()
    training = replace(DISTILLATION, epochs=ALONE, seed=given.seed)
    distil(student, given.unlabelled, pooled(seen, "probabilities"), training)
    straight = aligned(unlike, given.unlabelled.inputs_sample())
    return {
        "best client alone (chosen on test)": max(
            given.score(predict(model, given.test)) for model in same
        ),
        "one-shot average": given.score(predict(averaged, given.test)),
        "one-shot average, unlike starts": given.score(
            predict(alloykit.average(unlike, weights=sizes), given.test)
        ),
        "one-shot aligned average, unlike starts": given.score(
            predict(alloykit.average(straight, weights=sizes), given.test)
        ),
        "one-shot ensemble": given.score(probabilities),
        "one-shot FedDF": given.score(predict(student, given.test)),
    }


def union(given: Scene) -> float:
    """Test accuracy of one model that trained on everything, as many epochs as there are rounds."""
    parts = list(given.partitions.values())
    every = Rows(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))
    model = strided_cnn(given.seed)
    train(model, every, loss_of("classification"), replace(LOCAL, epochs=ROUNDS, seed=given.seed))
    return given.score(predict(model, given.test))


Found = tuple[dict[str, FederationHistory], dict[str, float], float]


def _job(given: tuple[Path, int]) -> Found:
    torch.set_num_threads(1)
    made = scene(*given)
    return rounds(made), one_shot(made), union(made)


def table(found: Sequence[Found]) -> str:
    """Test accuracy, and the bytes of models that moved for it."""
    model = sum(t.numel() * t.element_size() for t in strided_cnn(0).state_dict().values())
    lines = [
        "# What not moving the data costs",
        "",
        HEAD,
        "",
        "| method | test accuracy | moved |",
        "|---|---|---|",
    ]
    for name in ROUNDED:
        last = [statistics.mean(s or 0.0 for s in each[0][name].scores[-LAST:]) for each in found]
        moved = statistics.mean(each[0][name].moved[-1] for each in found)
        lines.append(_line(f"{name}, {ROUNDS} rounds", [100 * x for x in last], moved))
    for name in found[0][1]:
        # The start goes out and the models come back, once.
        moved = 0.0 if "alone" in name else CLIENTS * model * (1 if "unlike" in name else 2)
        lines.append(_line(name, [each[1][name] for each in found], moved))
    lines.append(_line("retrained on the union", [each[2] for each in found], None))
    return "\n".join([*lines, ""])


HEAD = (
    f"Made by `python benchmarks/federated_fashion.py --data FOLDER`: Fashion-MNIST, {CLIENTS} "
    f"clients, Dirichlet {CONCENTRATION}, {EXAMPLES:,} images; mean of {len(SEEDS)} seeds with the "
    f"lowest and the highest. In rounds: mean after each of the last {LAST} rounds. Moved: models, "
    "both ways; data for the union (4.7 MB as bytes)."
)


def _line(name: str, scores: Sequence[float], moved: float | None) -> str:
    spread = f"{statistics.mean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})"
    return f"| {name} | {spread} | {'all data' if moved is None else f'{moved / 1e6:.1f} MB'} |"


def mean_history(histories: Sequence[FederationHistory]) -> FederationHistory:
    """The first history with the scores of all on average, for the picture."""
    each_round = zip(*(history.rounds for history in histories), strict=True)
    joined = tuple(
        replace(same[0], score=statistics.mean(each.score or 0.0 for each in same))
        for same in each_round
    )
    return replace(histories[0], rounds=joined)


def main() -> None:
    """Run every seed, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="idx files of Fashion-MNIST")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(_job, [(given.data, seed) for seed in SEEDS]))
    text = table(found)
    (given.output / "federated_fashion.md").write_text(text)
    shot = {name: statistics.mean(e[1][name] for e in found) / 100 for name in LINES}
    lines = shot | {"union": statistics.mean(each[2] for each in found) / 100}
    histories = {name: mean_history([each[0][name] for each in found]) for name in ROUNDED}
    picture(
        histories, given.output / "federated_fashion.png", lines=lines,
        title="Fashion-MNIST, 10 clients, Dirichlet 0.3", split="test",
    )  # fmt: skip
    print(text)


LINES = ("one-shot ensemble", "one-shot average")

if __name__ == "__main__":
    main()
