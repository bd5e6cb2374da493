"""Keep an exponential moving average in a training loop, stop, and go on where it stopped."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import alloykit


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Fraction of digits that the model names correctly."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train for five epochs with an average, and restore it after the third."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    batches = list(zip(x[:1400].split(50), y[:1400].split(50), strict=True))
    test = x[1400:], y[1400:]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ema = alloykit.ExponentialMovingAverage(model, decay=0.98, warmup=True)

    for epoch in range(1, 6):
        model.train()
        for inputs, targets in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            ema.update()
        if epoch == 3:
            torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, "run.pt")
            saved = torch.load("run.pt")
            model.load_state_dict(saved["model"])
            ema = alloykit.ExponentialMovingAverage(model)
            ema.load_state_dict(saved["ema"])

        averaged = ema.module()
        # The statistics belong to the last weights; the average needs its own.
        alloykit.update_batch_norm(averaged, batches)
        last, average = accuracy(model.eval(), *test), accuracy(averaged.eval(), *test)
        print(f"epoch {epoch}: last weights {last:.3f}, average {average:.3f}")

    alloykit.save_checkpoint(averaged, "averaged.safetensors", overwrite=True)


if __name__ == "__main__":
    main()
