"""Try every way of combining three models, and write the report."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import alloykit


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> nn.Module:
    """Train on random batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


def network(width: int) -> nn.Module:
    """A small classifier."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def main() -> None:
    """Two fine-tunes of one base, and a wider model: compare."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

    torch.manual_seed(0)
    base = train(network(32), x[:900], y[:900], steps=40)
    comparison = alloykit.compare(
        {
            "fine-tune 1": train(copy.deepcopy(base), x[:900], y[:900], steps=40),
            "fine-tune 2": train(copy.deepcopy(base), x[:900], y[:900], steps=40),
            "wide": train(network(64), x[:900], y[:900], steps=60),
        },
        validation=(x[900:1350], y[900:1350]),
        test=(x[1350:], y[1350:]),
        base=base,
        candidates=["average", "weighted", "vote", "linear", "exponential", "greedy"],
        resamples=200,
        output="comparison",
        title="Three models of digits",
    )

    for row in comparison.rows:
        if row.status == "done":
            interval = row.intervals["accuracy"]
            print(
                f"{row.candidate:32} {interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"
            )
        else:
            print(f"{row.candidate:32} {row.status}: {row.reason}")
    print()
    print(f"Ship {comparison.recommendation.candidate}. {comparison.recommendation.reason}")
    print("The whole report: comparison/report.html")


if __name__ == "__main__":
    main()
