"""Distil four perceptrons into one small convolutional network, with labels and without."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import alloykit
from alloykit.training.settings import Training

SETTINGS = Training(epochs=30, batch_size=32, learning_rate=5e-3)


def perceptron(seed: int) -> nn.Module:
    """An untrained member."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def convolutional() -> nn.Module:
    """The student: a ninth of the ensemble's parameters."""
    torch.manual_seed(9)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 10)
    )


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 150) -> nn.Module:
    """Train on random batches."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Fraction of digits that the model names correctly."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train members, combine them, distil the combination."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(labels)
    training, validation, test = (
        (x[:1000], y[:1000]),
        (x[1000:1400], y[1000:1400]),
        (x[1400:], y[1400:]),
    )

    members = [train(perceptron(seed), *training) for seed in range(4)]
    ensemble = alloykit.ensemble(members)
    students = {
        "with labels": alloykit.distill(
            convolutional(), ensemble, train=training, validation=validation, training=SETTINGS
        ),
        "without labels": alloykit.distill(
            convolutional(), ensemble, train=training[0], alpha=0, training=SETTINGS
        ),
    }
    print(f"{'one member':16} test accuracy {accuracy(members[0], *test):.3f}")
    print(f"{'the ensemble':16} test accuracy {accuracy(ensemble, *test):.3f}")
    for name, found in students.items():
        print(f"{name:16} test accuracy {accuracy(found.student, *test):.3f}")
        print(f"{'':16} {found.facts['loss']}")


if __name__ == "__main__":
    main()
