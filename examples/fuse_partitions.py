"""Fuse four networks that each saw other digits, normalised in their own way."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import alloykit
from alloykit.ensembling.adapting import adapted, partition_statistics


def train(x: torch.Tensor, y: torch.Tensor, steps: int = 100) -> nn.Module:
    """A small network, trained on normalised inputs of one partition."""
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


def partitions(y: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Rows of four partitions: few classes are spread evenly (Dirichlet 0.3)."""
    torch.manual_seed(seed)
    shares = torch.distributions.Dirichlet(torch.full((4,), 0.3)).sample((10,))
    owner = torch.multinomial(shares[y], 1)[:, 0]
    return [(owner == part).nonzero()[:, 0] for part in range(4)]


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Fraction of digits that the model names correctly."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train members on partitions, fuse them on a held-out split, report on test."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images, dtype=torch.float32)[order], torch.tensor(labels)[order]
    validation, test = (x[1000:1400], y[1000:1400]), (x[1400:], y[1400:])

    members, training = {}, {}
    for number, rows in enumerate(partitions(y[:1000])):
        own = (x[rows], y[rows])
        mean, std = partition_statistics(own)
        model = train((own[0] - mean) / std, own[1])
        # From here on every member takes the raw images.
        members[f"partition {number}"] = adapted(model, mean=mean, std=std)
        training[f"partition {number}"] = own

    fused = alloykit.fuse(members, validation=validation, train=training)
    print(fused.report)
    for name, member in {**members, "mean": alloykit.ensemble(members), "fused": fused}.items():
        print(f"{name:12} test accuracy {accuracy(member, *test):.3f}")

    fused.report.picture("reliance.png")
    alloykit.save_exported(fused, "fused.pt2", example_inputs=x[:2], overwrite=True)
    difference = (alloykit.load_exported("fused.pt2")(test[0]) - fused(test[0])).abs().max()
    print(f"largest difference after loading: {float(difference):.1e}")


if __name__ == "__main__":
    main()
