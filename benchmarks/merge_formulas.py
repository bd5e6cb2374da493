"""Merge methods once more, as plain formulas in float64: what the accuracy table is held against.

Each takes the members, the base, the statistics and the parameters, and returns the merged matrix.
They share no code with alloykit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

Formula = Callable[
    [Sequence[Tensor], Tensor, Mapping[str, Sequence[Tensor]], Mapping[str, Any]], Tensor
]


def _mean(members: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(members)).mean(0)


def _ties(members: Sequence[Tensor], base: Tensor, density: float) -> Tensor:
    kept = []
    for member in members:
        delta = member - base
        order = delta.abs().flatten().sort(descending=True, stable=True).indices
        chosen = torch.zeros(delta.numel(), dtype=torch.bool)
        chosen[order[: int(density * delta.numel())]] = True
        cut = delta.abs().flatten()[chosen].min()
        # All that tie with the last one kept are kept: which of them goes is nobody's to say.
        kept.append(delta * (delta.abs() >= cut))
    trimmed = torch.stack(kept)
    sign = trimmed.sum(0).sign()
    agrees = (trimmed.sign() == sign) & (sign != 0)
    return base + (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    cosine = (first * second).sum() / (first.norm() * second.norm())
    if cosine.abs() > 0.9995:
        return torch.lerp(first, second, t)
    angle = torch.arccos(cosine)
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / angle.sin()


def _model_stock(members: Sequence[Tensor], base: Tensor) -> Tensor:
    deltas = [(member - base).flatten() for member in members]
    cosines = [one @ other / (one.norm() * other.norm()) for one, other in combinations(deltas, 2)]
    cosine, count = sum(cosines) / len(cosines), len(members)
    share = count * cosine / (1 + (count - 1) * cosine)
    return share * _mean(members) + (1 - share) * base


def _karcher(members: Sequence[Tensor]) -> Tensor:
    units = [member / member.norm() for member in members]
    point = _mean(units)
    for _ in range(50):
        point = point / point.norm()
        angles = [torch.arccos((unit * point).sum().clamp(-1, 1)) for unit in units]
        tangents = [
            angle / angle.sin() * (unit - angle.cos() * point)
            for unit, angle in zip(units, angles, strict=True)
        ]
        step = _mean(tangents)
        length = step.norm()
        if length < 1e-12:
            break
        point = length.cos() * point + length.sin() * step / length
    return point / point.norm() * sum(member.norm() for member in members) / len(members)


def _fisher(members: Sequence[Tensor], information: Sequence[Tensor]) -> Tensor:
    shares = torch.stack(tuple(information))
    return (shares * torch.stack(tuple(members))).sum(0) / shares.sum(0)


FORMULAS: dict[str, Formula] = {
    "linear": lambda m, b, s, p: _mean(m),
    "interpolate": lambda m, b, s, p: torch.lerp(b, m[0], p["alpha"]),
    "passthrough": lambda m, b, s, p: m[0],
    "task_arithmetic": lambda m, b, s, p: b + sum(each - b for each in m),
    "ties": lambda m, b, s, p: _ties(m, b, p["density"]),
    "slerp": lambda m, b, s, p: _slerp(m[0], m[1], p["t"]),
    "karcher": lambda m, b, s, p: _karcher(m),
    "model_stock": lambda m, b, s, p: _model_stock(m, b),
    "median": lambda m, b, s, p: torch.stack(tuple(m)).median(0).values,
    "fisher": lambda m, b, s, p: _fisher(m, s["fisher"]),
    "nearswap": lambda m, b, s, p: b + (m[0] - b) * (p["t"] / (m[0] - b).abs()).clamp(max=1),
}
"""Where a method is simple enough to be written twice."""
