"""Outputs computed once: what that saves heads and students, beside computing them every epoch.

Claims: a fusion head over cached outputs of four CNNs trains at least 20 times faster than one
whose members are computed again in each of 20 epochs; distillation from stored outputs of a teacher
of four CNNs is at least 3 times faster than with the teacher online, at equal results.

    python benchmarks/cached_training.py [--data FOLDER]

FOLDER holds the idx files of Fashion-MNIST; random images take their place where it is not given.
Both sides of a row train the same head or student on the same examples for the same epochs, with
alloykit's loop; the cached side includes computing and keeping the outputs. Head: 1,000 examples,
attention, 20 epochs; "as written by hand" leaves the members' gradients on, as loops without
no_grad do (without them no ratio can reach 20, because the cached side runs the members once).
Student: 2,000 examples, 10 epochs, a CNN of half the members' width. Runs are interleaved; the
median of --repeats CPU seconds on one thread is shown. About three minutes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import alloykit
from alloykit.data.examples import as_examples
from alloykit.data.sources import load_split
from alloykit.data.split_spec import SplitSpec
from alloykit.fusion.collecting import gather
from alloykit.fusion.head import HeadShape
from alloykit.registry import fusion_heads
from alloykit.training.loop import train
from alloykit.training.rows import Part, Rows
from alloykit.training.settings import Training
from fashion_models import cnn

OUTPUT = Path(__file__).parent / "output" / "cached_training.md"
HEAD_EXAMPLES, HEAD_EPOCHS = 1000, 20
STUDENT_EXAMPLES, STUDENT_EPOCHS, WIDTH = 2000, 10, 32
Split = tuple[Tensor, Tensor]


def images(data: Path | None, count: int) -> Split:
    """Fashion-MNIST's first images, or random ones."""
    if data is None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(count, 1, 28, 28, generator=generator)
        return inputs, torch.randint(10, (count,), generator=generator)
    files = {
        name: str(next(data.resolve().glob(f"train-{name}-idx*"))) for name in ("images", "labels")
    }
    batches = list(load_split(SplitSpec(**files, rows=f":{count}"), "train", data).batches())
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([y for _, y in batches])


def members(split: Split) -> dict[str, nn.Module]:
    """Four CNNs, one epoch each: good enough to be taught by."""
    made = {}
    for number in range(4):
        torch.manual_seed(number)
        made[f"cnn {number}"] = alloykit.retrain(
            cnn(WIDTH), split, start="given", training={"epochs": 1, "seed": number}
        ).model
    return made


def new_head() -> nn.Module:
    """The attention head that all three ways train, untrained."""
    torch.manual_seed(0)
    shape = HeadShape((10,) * 4, 10, "classification")
    return fusion_heads.build("attention").build(shape)


HEAD_TRAINING = Training(epochs=HEAD_EPOCHS, batch_size=128, learning_rate=5e-3)


def cached_head(frozen: dict[str, nn.Module], split: Split) -> nn.Module:
    """Outputs once, then 20 epochs over them."""
    rows = gather(frozen, as_examples(split, "validation")).data
    head = new_head()

    def loss(model: nn.Module, part: Part) -> Tensor:
        return F.nll_loss(model(part.inputs, None), part.targets)

    train(head, Rows(rows.members, rows.targets), loss, HEAD_TRAINING)
    return head


def recomputed_head(frozen: dict[str, nn.Module], split: Split, *, gradients: bool) -> nn.Module:
    """Every batch through every member, in every epoch."""
    head, models = new_head(), list(frozen.values())
    for model in models:
        model.requires_grad_(gradients)

    def loss(given: nn.Module, part: Part) -> Tensor:
        with torch.set_grad_enabled(gradients):
            said = [model(part.inputs).log_softmax(-1) for model in models]
        return F.nll_loss(given(said, None), part.targets)

    train(head, Rows(*split), loss, HEAD_TRAINING)
    for model in models:
        model.requires_grad_(False).zero_grad()
    return head


def student(teacher: dict[str, nn.Module], split: Split, *, online: bool) -> nn.Module:
    """A student of the four, from stored outputs or with the teacher asked in every step."""
    torch.manual_seed(9)
    return alloykit.distill(
        cnn(WIDTH // 2),
        teacher,
        train=split,
        training={"epochs": STUDENT_EPOCHS, "batch_size": 64},
        # Inputs that may change are the reason to ask the teacher in every step; these do not.
        augment=(lambda inputs: inputs) if online else None,
    ).student


def seconds(run: Callable[[], nn.Module]) -> tuple[float, nn.Module]:
    """Processor seconds, and what was made."""
    began = time.process_time()
    made = run()
    return time.process_time() - began, made


def difference(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of any parameter."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def measured(
    ways: dict[str, Callable[[], nn.Module]], repeats: int
) -> tuple[dict[str, float], dict[str, nn.Module]]:
    """Median seconds of each way, in turn, and what the last runs made."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, nn.Module] = {}
    for _ in range(repeats):
        for name, run in ways.items():
            took, made[name] = seconds(run)
            found[name].append(took)
            print(f"{name}: {took:.2f} s", flush=True)
    return {name: statistics.median(values) for name, values in found.items()}, made


def table(title: str, least: float, times: dict[str, float], models: dict[str, nn.Module]) -> str:
    """The ways of one claim; the first is the cached one, the last the one it is measured by."""
    names = list(times)
    lines = [f"## {title}\n", "| | CPU s | over cached | largest difference of a parameter |"]
    lines.append("|---|---:|---:|---:|")
    for name in names:
        lines.append(
            f"| {name} | {times[name]:.2f} | {times[name] / times[names[0]]:.1f} | "
            f"{difference(models[name], models[names[0]]):.1g} |"
        )
    ratio = times[names[-1]] / times[names[0]]
    verdict = "holds" if ratio >= least else "**does not hold**"
    lines.append(f"\nAsked: at least {least:g} times. Measured: {ratio:.1f}: {verdict}.\n")
    return "\n".join(lines)


def main() -> None:
    """Measure both claims, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the idx files")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    few, many = (images(arguments.data, count) for count in (HEAD_EXAMPLES, STUDENT_EXAMPLES))
    models = members(many)
    frozen = {name: copy.deepcopy(m).eval().requires_grad_(False) for name, m in models.items()}
    heads = measured(
        {
            "cached once": lambda: cached_head(frozen, few),
            "recomputed, without gradients": lambda: recomputed_head(frozen, few, gradients=False),
            "recomputed, as written by hand": lambda: recomputed_head(frozen, few, gradients=True),
        },
        arguments.repeats,
    )
    students = measured(
        {
            "teacher's outputs stored": lambda: student(models, many, online=False),
            "teacher online": lambda: student(models, many, online=True),
        },
        arguments.repeats,
    )
    text = (
        "# Outputs computed once\n\nMade by `benchmarks/cached_training.py`"
        f"{'' if arguments.data else ' on random images'}, torch "
        f"{torch.__version__.partition('+')[0]}, one thread.\n\n"
        + table("A head over four CNNs, 20 epochs", 20, *heads)
        + "\n"
        + table("A student of four CNNs, 10 epochs", 3, *students)
    )
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
