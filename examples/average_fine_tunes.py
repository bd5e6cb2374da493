"""Average three fine-tunes of one base, and let validation choose a greedy soup of them."""

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


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Fraction of digits that the model names correctly."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, average, choose, report."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    train_x, train_y = x[:1000], y[:1000]
    validation, test = (x[1000:1400], y[1000:1400]), (x[1400:], y[1400:])

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    base = train(network, train_x, train_y, seed=0, steps=40)
    members = {
        f"fine-tune {seed}": train(copy.deepcopy(base), train_x, train_y, seed, steps=40)
        for seed in (1, 2, 3)
    }

    average = alloykit.average(members)
    soup = alloykit.soup(members, "greedy", validation=validation)

    for name, model in {**members, "average": average, "greedy soup": soup.model}.items():
        print(f"{name:12}  test accuracy {accuracy(model, *test):.3f}")
    print("weights of the soup:", [round(weight, 2) for weight in soup.choice.weights])

    path = alloykit.average(members, output="average.safetensors")
    print("written:", path, "made by", alloykit.open_checkpoint(path).metadata["method"])


if __name__ == "__main__":
    main()
