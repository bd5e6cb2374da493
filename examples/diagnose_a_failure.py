"""Why is the average of two good models bad? Because they were trained from different starts."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import alloykit


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int, steps: int) -> nn.Module:
    """Train on batches that the seed draws."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


def network(seed: int) -> nn.Module:
    """A small classifier, initialised by the seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    """One pair from one base, one pair from two starts."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    train_x, train_y, validation = x[:1200], y[:1200], (x[1200:], y[1200:])

    base = train(network(0), train_x, train_y, seed=0, steps=60)
    relatives = [train(copy.deepcopy(base), train_x, train_y, seed, 40) for seed in (1, 2)]
    strangers = [train(network(seed), train_x, train_y, seed, 100) for seed in (1, 2)]

    for title, pair in (("One base", relatives), ("Two starts", strangers)):
        print(title)
        print("  from the weights:", alloykit.inspect(pair).verdict)
        (barrier,) = alloykit.diagnose(pair, validation=validation)
        losses = " ".join(f"{loss:.2f}" for loss in barrier.losses)
        print("  loss along the line:", losses)
        print("  from the data:", barrier.verdict)


if __name__ == "__main__":
    main()
