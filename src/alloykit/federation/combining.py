"""What a rule makes of the updates that count, and which of them turn out not to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.federation.checks import Checks, exceeds
from alloykit.federation.contract import Blocks, Gram, Merge, Reports, Rule, Sum
from alloykit.federation.values import Source, Values
from alloykit.numerics import unusable_values

ONE = 1e-12
"""How far from one a sum of coefficients may be that is one but for rounding."""


@dataclass(frozen=True, eq=False)
class Combined:
    """The clients' models combined, or why some of them must not be.

    Attributes:
        tensor: Name -> combined tensor in the compute dtype; to be asked for once per name.
        coefficients: What each delta was multiplied with; None where there is no such number.
        reports: The reports, with norms where they were measured.
        bad: Position -> why that client does not count; then nothing was combined.
    """

    tensor: Callable[[str], Tensor]
    coefficients: Sequence[float] | None
    reports: Reports
    bad: dict[int, str] = field(default_factory=dict)


def combine(
    values: Values,
    rule: Rule,
    reports: Reports,
    checks: Checks,
    *,
    measured: bool,
    stepped: bool,
    at_once: bool = True,
) -> Combined:
    """Combine the clients by a rule, unless some hold what must not be combined.

    Args:
        values: The clients' tensors, in the order of their names.
        rule: What combines them.
        reports: One per client.
        checks: Limits of norms, and whether values are checked.
        measured: Whether the rule asks for norms.
        stepped: Whether a server's step follows, which wants small changes in all their digits.
        at_once: Whether the combined model may be in memory as a whole.
    """
    if isinstance(rule, Sum) and not measured and (at_once or not checks.values):
        return _summed_at_once(values, rule, reports, checks, stepped)
    if isinstance(rule, Gram) or (isinstance(rule, Blocks) and rule.chosen is not None):
        products = values.products()
        squares: Sequence[float] = np.diagonal(products).tolist()
    else:
        products = np.empty((0, 0))
        squares = values.squares() if checks.values or measured else []
    reports, bad = looked_at(values, reports, squares, checks)
    if bad:
        return Combined(_nothing, None, reports, bad)
    if isinstance(rule, Merge):
        return Combined(_merged(values, rule).pop, None, reports)
    if isinstance(rule, Blocks):
        if rule.chosen is not None:
            values = values.only(rule.chosen(products, reports))
        return Combined(lambda name: values.blockwise(name, rule.combine), None, reports)
    given = rule.coefficients(reports) if isinstance(rule, Sum) else None
    factors = list(rule.coefficients(products, reports)) if isinstance(rule, Gram) else given
    assert factors is not None
    return Combined(lambda name: values.combination(name, factors), factors, reports)


def _summed_at_once(
    values: Values, rule: Sum, reports: Reports, checks: Checks, stepped: bool
) -> Combined:
    """Sum and measure in one pass: what must be left out is rare, and then the sum is made anew."""
    factors = rule.coefficients(reports)
    if not checks.values:
        is_mean = abs(math.fsum(factors) - 1.0) < ONE and min(factors) >= 0.0
        combined = values.mean if is_mean and not stepped else values.combination
        return Combined(lambda name: combined(name, factors), factors, reports)
    squares = [0.0] * len(reports)
    sums = {name: values.combination(name, factors, squares) for name in values.structure.averaged}
    reports, bad = looked_at(values, reports, squares, checks)
    return Combined(_nothing if bad else sums.pop, factors, reports, bad)


def looked_at(
    values: Values, reports: Reports, squares: Sequence[float], checks: Checks
) -> tuple[Reports, dict[int, str]]:
    """The reports with norms, and which clients' values cannot be used.

    Where there is no server the deltas are differences to another client, and no norms.
    """
    if not squares:
        return reports, {}
    bad = {}
    for i, square in enumerate(squares):
        if not math.isfinite(square) and (wrong := unusable(values, values.sources[i])):
            bad[i] = wrong
    if not bad and not all(map(math.isfinite, squares)):
        raise CheckpointError(
            "The clients' models cannot be combined: the server's model holds NaN or infinite "
            "numbers, or the clients' numbers are too large for their dtype."
        )
    if values.server is None or bad:
        return reports, bad
    norms = [math.sqrt(max(square, 0.0)) for square in squares]
    far = exceeds(norms, checks.norm_ratio)
    limit = math.inf if checks.max_norm is None else checks.max_norm
    for i, norm in enumerate(norms):
        if norm > limit:
            bad[i] = f"its change has the norm {norm:.4g}, over the limit {limit:g}"
        elif far[i]:
            bad[i] = f"its change has the norm {norm:.4g}, over {checks.norm_ratio:g} times the "
            bad[i] += "median of all"
    return [replace(r, norm=norm) for r, norm in zip(reports, norms, strict=True)], bad


def unusable(values: Values, source: Source) -> str:
    """The first tensor of a client that holds what is not finite; "" where there is none."""
    for name in values.structure.averaged:
        if wrong := unusable_values(source.checkpoint.read(name)):
            return f"{shown(name)} holds {wrong}"
    return ""


def _merged(values: Values, rule: Merge) -> dict[str, Tensor]:
    """All averaged tensors by a merge method of the engine, in the compute dtype."""
    if any(source.delta for source in values.sources):
        raise CheckpointError(
            f"The merge method {rule.method} takes whole models, and some updates hold changes."
        )
    structure = values.structure
    members = [_Renamed(source) for source in values.sources]
    plan = plan_merge(members, rule.method, dict(rule.parameters), base=values.server)
    merged = merge_in_memory(plan, members, values.server)
    return {
        name: merged[name].to(
            structure.wide(name).to_complex() if merged[name].is_complex() else structure.wide(name)
        )
        for name in structure.averaged
    }


class _Renamed:
    """An update under its client's name, which randomness goes by."""

    def __init__(self, source: Source) -> None:
        self.id = source.client
        self.metadata = source.checkpoint.metadata
        self.specs, self.read = source.checkpoint.specs, source.checkpoint.read


def _nothing(name: str) -> Tensor:
    raise KeyError(name)
