"""How fast and how exact the best mixing weights are found.

Prints, for members x examples, our solver's time as a multiple of scipy's SLSQP and of EM (above
1: ours is faster), of greedy selection with 50 rounds, and each one's log loss above the best
found. Run: python benchmarks/weight_solvers.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize

from alloykit.ensembling.greedy_selection import TruthScores, selected
from alloykit.ensembling.objectives import log_loss_weights
from alloykit.ensembling.stack import true_class

SIZES = ((4, 2000), (16, 2000), (64, 2000), (64, 20000))
CLASSES = 10
ROUNDS = 3


def members_outputs(members: int, examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of correlated members of unequal skill, and the labels."""
    generator = torch.Generator().manual_seed(members)
    labels = torch.randint(CLASSES, (examples,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, CLASSES)
    shared = torch.randn(examples, CLASSES, generator=generator)
    rows = [
        (1 + torch.rand(1, generator=generator)) * 1.5 * truth
        + 0.8 * shared
        + torch.randn(examples, CLASSES, generator=generator)
        for _ in range(members)
    ]
    return torch.stack(rows).log_softmax(-1), labels


def slsqp(truth: np.ndarray) -> np.ndarray:
    """The peer: scipy's solver with the analytical gradient."""
    members = truth.shape[1]
    found = minimize(
        lambda w: -np.log(truth @ w).mean(),
        np.full(members, 1 / members),
        jac=lambda w: -(truth / (truth @ w)[:, None]).mean(0),
        method="SLSQP",
        bounds=[(1e-12, 1)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    return np.maximum(found.x, 0) / np.maximum(found.x, 0).sum()


def em(truth: np.ndarray, gap: float = 1e-4, steps: int = 5000) -> np.ndarray:
    """The floor: multiplicative updates, ten lines, to a gap ten thousand times ours."""
    weights = np.full(truth.shape[1], 1 / truth.shape[1])
    for _ in range(steps):
        ratio = (truth / (truth @ weights)[:, None]).mean(0)
        if ratio.max() - 1 <= gap:
            break
        weights = weights * ratio
    return weights


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds and result of one call."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    """Print one line per size."""
    print("times as multiples of ours; (log loss above the best found)")
    for members, examples in SIZES:
        stack, labels = members_outputs(members, examples)
        column = true_class(stack, labels)
        truth = column.double().exp().numpy().T.copy()
        solvers: dict[str, Callable[[], np.ndarray]] = {
            "ours": lambda c=column: log_loss_weights(c).weights,
            "SLSQP": lambda t=truth: slsqp(t),
            "EM to 1e-4": lambda t=truth: em(t),
            "greedy 50": lambda s=stack, y=labels, m=members: selected(
                TruthScores(s, y), m, 50
            ).numpy(),
        }
        rounds = [{name: timed(run) for name, run in solvers.items()} for _ in range(ROUNDS)]
        spent = {name: statistics.median(r[name][0] for r in rounds) for name in solvers}
        losses = {name: -np.log(truth @ rounds[0][name][1]).mean() for name in solvers}
        best = min(losses.values())
        others = ", ".join(
            f"{name} {spent[name] / spent['ours']:.1f}x (+{losses[name] - best:.0e})"
            for name in solvers
            if name != "ours"
        )
        gap = log_loss_weights(column).gap
        print(
            f"{members:3d} x {examples:6d}: ours {spent['ours'] * 1e3:6.1f} ms "
            f"(+{losses['ours'] - best:.0e}, certified {gap:.0e}); {others}"
        )


if __name__ == "__main__":
    main()
