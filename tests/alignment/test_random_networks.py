"""Groups of networks put together at random, each proved by running it permuted.

Wrong rules for an operation show here: ``permutation_groups`` raises where the outputs change.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alloykit.alignment import operations
from alloykit.alignment.axes import axis
from alloykit.alignment.deriving import permutation_groups
from alloykit.errors import AlignmentError

MOST = 600
"""Numbers per example beyond which nothing is made longer."""


class Do(nn.Module):
    """A function of what went before: the last tensor and an earlier one of some kind."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        return self.function(x, earlier, *self.layers)


def layer(module: nn.Module) -> Do:
    return Do(lambda x, earlier, inner: inner(x), module)


def halves(x: Tensor, cut: str) -> tuple[Tensor, Tensor]:
    half = x.shape[1] // 2
    if cut == "chunk":
        return x.chunk(2, 1)
    return x.split(half, 1) if cut == "split" else (x[:, :half], x[:, half:])


def step(kind: str, r: random.Random, channels: int, length: int) -> Do | None:
    """A step for tensors [example, channel, position], or None where it does not fit them."""
    c, n, even = channels, length, channels % 2 == 0
    dim, cut = r.choice([1, 2]), r.choice(["chunk", "split", "slice"])
    layers: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(n, r.choice([n, 4, 6]), bias=r.random() < 0.7),
        "conv": lambda: nn.Conv1d(c, r.choice([4, 6, c]), 3, padding=1),
        "depthwise": lambda: nn.Conv1d(c, 2 * c, 1, groups=c),
        "transposed conv": lambda: nn.ConvTranspose1d(c, 6, 3, padding=1, groups=1 + even),
        "layer norm": lambda: nn.LayerNorm(r.choice([(n,), (c, n)])),
        "rms norm": lambda: nn.RMSNorm(n),
        "group norm": lambda: nn.GroupNorm(1 + even, c),
        "batch norm": lambda: nn.BatchNorm1d(c),
        "prelu": lambda: nn.PReLU(r.choice([1, c])),
    }
    if even:
        layers["grouped conv"] = lambda: nn.Conv1d(c, 8, 1, groups=2)
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "relu": lambda x, _: F.relu(x),
        "gelu in place": lambda x, _: (x + 1).mul_(x).clamp_(-3, 3),
        "gate": lambda x, _: torch.where(x > 0, x, x * 0.5) * x.sigmoid(),
        "softmax": lambda x, _: x.softmax(dim),
        "cumsum": lambda x, _: x.cumsum(dim),
        "flip": lambda x, _: x.flip(dim),
        "centred": lambda x, _: x - x.mean(dim, keepdim=True),
        "normalize": lambda x, _: F.normalize(x, dim=dim),
        "triangle": lambda x, _: x.tril() if dim == 1 else x.triu(),
        "transpose": lambda x, _: x.transpose(1, 2),
        "moved dimension": lambda x, _: x.movedim(2, 1).swapaxes(1, 2).mT,
        "tile": lambda x, _: x.tile(2) if 2 * c * n <= MOST else x,
        "narrow": lambda x, _: x.narrow(1, 1, c - 1) if c > 1 else x,
        "table": lambda x, _: x[:, torch.arange(c).flip(0)],
        "two tables": lambda x, _: x[:, [0, c - 1], [n - 1, 0]].unsqueeze(2),
        "batch and table": lambda x, _: x[torch.arange(len(x)), :, [n - 1]].unsqueeze(1),
        "pixel shuffle": lambda x, _: (
            F.pixel_shuffle(x.unsqueeze(2), 2).flatten(2) if c % 4 == 0 else x
        ),
        "added product": lambda x, _: torch.baddbmm(x.mean(2, keepdim=True), x, x.mT) / 4,
        "mean": lambda x, _: x.mean(2, keepdim=True),
        "variance": lambda x, _: x.var(2, keepdim=True, unbiased=False),
        "maximum": lambda x, _: x.max(2, keepdim=True).values,
        "select": lambda x, _: x[..., 0].unsqueeze(-1),
        "pad": lambda x, _: F.pad(x, (1, -1)),
        "products": lambda x, _: x @ x.transpose(1, 2) / 4,
        "einsum": lambda x, _: torch.einsum("bcl,bdl,bdm->bcm", x, x, x) / 8,
        "attention": lambda x, _: F.scaled_dot_product_attention(x, x, x, is_causal=dim == 1),
        "cut unevenly": lambda x, _: x[:, c // 3 :],
        "reshape": lambda x, _: x.reshape(-1, *shape),
    }
    if even:
        functions["gated halves"] = lambda x, _: torch.mul(*halves(x, cut))
        functions["glu"] = lambda x, _: F.glu(x, 1)
    if n > 1:
        functions["pool"] = lambda x, _: F.max_pool1d(x, 3, 1, 1)
    if n == 1:
        functions["expand"] = lambda x, _: x.expand(-1, -1, 4)
    if 2 * c * n <= MOST:
        functions["cat"] = lambda x, _: torch.cat([x, -x.relu()], 1)
        functions["stack"] = lambda x, _: torch.stack([x, x * 2], -1).flatten(-2)
        functions["repeat"] = lambda x, _: x.repeat(1, 1, 2)
        functions["interleave"] = lambda x, _: x.repeat_interleave(2, 1)
        functions["cat with earlier"] = lambda x, old: (
            torch.cat([x, old], 1) if x.shape[2] == old.shape[2] else x
        )
    functions["residual"] = lambda x, old: x + old if x.shape == old.shape else x
    total = c * n
    first = r.choice([d for d in range(1, total + 1) if total % d == 0])
    shape = (first, total // first)
    if kind in layers:
        return layer(layers[kind]())
    return Do(functions[kind]) if kind in functions else None


KINDS = (
    "linear", "conv", "depthwise", "transposed conv", "layer norm", "rms norm", "group norm",
    "batch norm", "prelu", "grouped conv", "relu", "gelu in place", "gate", "softmax", "cumsum",
    "flip", "centred", "normalize", "triangle", "transpose", "mean", "variance", "maximum",
    "select", "pad", "products", "einsum", "attention", "cut unevenly", "reshape", "gated halves",
    "moved dimension", "tile", "narrow", "table", "two tables", "batch and table", "pixel shuffle",
    "added product", "glu", "pool", "expand", "cat", "stack", "repeat", "interleave", "cat with earlier", "residual",
)  # fmt: skip


class RandomNetwork(nn.Module):
    """Some steps between a linear layer and another; ``first`` is the kind of the first one."""

    def __init__(self, seed: int, first: str = ""):
        super().__init__()
        r = random.Random(seed)
        torch.manual_seed(seed)
        self.shape = (r.choice([4, 6, 8, 12]), r.choice([1, 2, 3, 4]))
        self.start = nn.Linear(5, self.shape[0] * self.shape[1])
        self.steps, self.earlier = nn.ModuleList(), []
        seen = [torch.randn(2, *self.shape)]
        for kind in [*filter(None, [first]), *r.choices(KINDS, k=r.randint(1, 5))]:
            made = step(kind, r, *seen[-1].shape[1:])
            place = r.randrange(len(seen))
            if made is not None:
                self.steps.append(made)
                self.earlier.append(place)
                seen.append(made(seen[-1], seen[place]))
        self.end = nn.Linear(seen[-1][0].numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.start(x).view(-1, *self.shape)]
        for made, place in zip(self.steps, self.earlier, strict=True):
            seen.append(made(seen[-1], seen[place]))
        return self.end(seen[-1].flatten(1))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_free_may_be_permuted(kind):
    free = 0
    for seed in range(3):
        groups = permutation_groups(RandomNetwork(seed, kind), torch.randn(3, 5))
        assert {*groups.unknown} <= {"reshape"}, "a rule is missing"
        free += len(groups.groups)
    if kind not in ("triangle", "pad", "two tables"):
        assert free > 0


WRONG = {
    "cumsum": operations._same,
    "max_pool1d": operations._same,
    "layer_norm": operations._same,
    "batch_norm": operations._same,
    "pad": lambda call: tuple(axis(size) for size in call.shape),
}
"""Rules that forget something."""


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("cumsum", "cumsum"), ("max_pool1d", "pool"), ("layer_norm", "layer norm"),
     ("batch_norm", "batch norm"), ("pad", "pad")],
)  # fmt: skip
def test_rules_that_forget_something_are_caught(operation, kind, monkeypatch):
    rules = {**operations.RULES, operation: WRONG[operation]}
    monkeypatch.setattr(operations, "RULES", rules)
    with pytest.raises(AlignmentError, match="changes its outputs by"):
        derive_many(kind)


def derive_many(kind):
    for seed in range(20):
        permutation_groups(RandomNetwork(seed, kind), torch.randn(3, 5))
