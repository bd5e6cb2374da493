"""Clients of one small model, honest and otherwise, and every aggregator with parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import Aggregator
from alloykit.federation.update import Update
from alloykit.registry import aggregators

SPREAD = 0.01
HONEST = 11

PARAMETERS: dict[str, dict[str, Any]] = {
    "krum": {"num_malicious": 2},
    "multi_krum": {"num_malicious": 2},
    "bulyan": {"num_malicious": 2},
    "norm_clipping": {"max_norm": 0.05},
    "centred_clipping": {"clip_norm": 0.1, "iterations": 3},
    "dp_fixed_clipping": {"clip_norm": 0.1, "noise_multiplier": 0.0},
    "dp_adaptive_clipping": {"noise_multiplier": 0.0},
    "qfedavg": {"client_learning_rate": 0.1, "q": 0.5},
    "scaffold": {"num_clients": 20},
}
"""Those that an aggregator cannot do without, and f = 2 for those that ask for it."""

MERGES = ("median", "trimmed_mean", "geometric_median")
EVERY = (*aggregators.names(), *MERGES)


def built(name: str) -> Aggregator:
    """The aggregator of that name."""
    return as_aggregator(name, PARAMETERS.get(name))


def model(seed: int = 0) -> dict[str, Tensor]:
    """A model with every kind of tensor that clients send."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "layer.weight": drawn(8, 8),
        "layer.bias": drawn(8),
        "half.weight": drawn(5).bfloat16(),
        "wide.weight": drawn(3).double(),
        "scale": drawn(1)[0],
        "bn.running_var": drawn(4).square(),
        "bn.num_batches_tracked": torch.tensor(40),
        "table": torch.arange(3),
    }


def trained(server: Mapping[str, Tensor], seed: int, spread: float = SPREAD) -> dict[str, Tensor]:
    """What a client makes of the server's model."""
    generator = torch.Generator().manual_seed(1000 + seed)
    found = {}
    for name, tensor in server.items():
        if not tensor.dtype.is_floating_point:
            found[name] = tensor + (7 if name.endswith("tracked") else 0)
            continue
        change = torch.randn(tensor.shape, generator=generator) * spread
        found[name] = (tensor.double() + change).to(tensor.dtype)
    return found


def update(client: str, tensors: Any, **changes: Any) -> Update:
    """An update with all numbers that any aggregator asks for."""
    said = {"num_examples": 30, "steps": 4.0, "loss": 0.5, "control": {}}
    return Update(client, tensors, **{**said, **changes})


def honest(server: Mapping[str, Tensor], count: int = HONEST) -> list[Update]:
    """Clients that differ in what they learned and in their numbers of examples."""
    return [update(f"client {i:02}", trained(server, i), num_examples=10 + i) for i in range(count)]


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two models are the same to the bit, signs of zeros and order of names included."""
    if list(one) != list(other):
        return False
    pairs = [(one[name], other[name]) for name in one]
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
        for a, b in pairs
    )


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's elements."""
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
