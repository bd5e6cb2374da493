"""Combine a convolutional network and a perceptron, with weights that validation data chose."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import alloykit


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> nn.Module:
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
    """Train both, combine them, write one file that needs neither's source."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(labels)
    validation, test = (x[1000:1400], y[1000:1400]), (x[1400:], y[1400:])

    torch.manual_seed(0)
    convolutional = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
    )
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    members = {
        "convolutional": train(convolutional, x[:1000], y[:1000], steps=60),
        "perceptron": train(perceptron, x[:1000], y[:1000], steps=60),
    }

    plain = alloykit.ensemble(members)
    weighted = alloykit.ensemble(members, "weighted", by="log_loss", validation=validation)

    for name, model in {**members, "average": plain, "weighted": weighted}.items():
        print(f"{name:14} test accuracy {accuracy(model, *test):.3f}")
    print("weights:", dict(zip(weighted.names, weighted.weights or (), strict=True)))

    alloykit.save_exported(weighted, "ensemble.pt2", example_inputs=x[:2], overwrite=True)
    loaded = alloykit.load_exported("ensemble.pt2")
    difference = (loaded(test[0]) - weighted(test[0])).abs().max()
    print(f"largest difference after loading: {float(difference):.1e}")


if __name__ == "__main__":
    main()
