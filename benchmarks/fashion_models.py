"""The architecture of the Fashion-MNIST study."""

from torch import nn


def cnn(width: int = 16) -> nn.Module:
    """Two convolutions with BatchNorm and pooling, then one hidden linear layer; 28 x 28 inputs."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * width * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
