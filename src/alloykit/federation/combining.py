"""What a rule makes of the updates that count, and which of them turn out not to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError, InvalidParameter
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.federation.checks import Checks, exceeds
from alloykit.federation.choosing import with_fewer_malicious
from alloykit.federation.contract import (
    Aggregator,
    Blocks,
    Gram,
    Merge,
    Reports,
    Rule,
    ServerState,
    Sum,
)
from alloykit.federation.values import Source, Values
from alloykit.numerics import compute_dtype, unusable_values
from alloykit.types import Checkpoint, TensorSpec

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


def combine_without(
    found: int,
    values: Values,
    state: ServerState,
    reports: Reports,
    checks: Checks,
    aggregator: Aggregator,
    *,
    at_once: bool,
) -> Combined:
    """``combine``, where some clients were already found out by what they sent.

    Raises:
        InvalidParameter: There are too few clients, even if those were all that are malicious.
    """
    refused: InvalidParameter | None = None
    for each in with_fewer_malicious(aggregator, found):
        try:
            return combine(values, each.rule(state), reports, checks, each, at_once=at_once)
        except InvalidParameter as error:
            refused = refused or error
    assert refused is not None
    raise refused


def combine(
    values: Values,
    rule: Rule,
    reports: Reports,
    checks: Checks,
    aggregator: Aggregator,
    *,
    at_once: bool = True,
) -> Combined:
    """Combine the clients by a rule, unless some hold what must not be combined.

    Args:
        values: The clients' tensors, in the order of their names.
        rule: What combines them.
        reports: One per client.
        checks: Limits of norms, and whether values are checked.
        aggregator: Whose rule it is, and what it asks for.
        at_once: Whether the combined model may be in memory as a whole.
    """
    measured = checks.measures(aggregator)
    if isinstance(rule, Sum) and "norm" not in aggregator.asks and (at_once or not measured):
        # A step wants small changes in all their digits.
        exact = aggregator.step is not None
        return _summed_at_once(
            values, rule, reports, checks, measured=measured, exact=exact, at_once=at_once
        )
    if isinstance(rule, Gram) or (isinstance(rule, Blocks) and rule.chosen is not None):
        products = values.products()
        squares: Sequence[float] = np.diagonal(products).tolist()
    else:
        products = np.empty((0, 0))
        squares = values.squares() if measured else []
    reports, bad = looked_at(values, reports, squares, checks)
    if bad:
        return Combined(_nothing, None, reports, bad)
    if isinstance(rule, Merge):
        return Combined(_merged(values, rule).pop, None, reports)
    if isinstance(rule, Blocks):
        if rule.chosen is not None:
            values = values.only(rule.chosen(products, reports))
        return Combined(
            _each(values, lambda name: values.blockwise(name, rule.combine), at_once), None, reports
        )
    if isinstance(rule, Sum):
        if bad := boundless(rule, reports):
            return Combined(_nothing, None, reports, bad)
        factors: Sequence[float] = finite(rule.coefficients(reports))
    else:
        factors = finite(rule.coefficients(products, reports))
    combined = _each(values, lambda name: values.combination(name, factors), at_once)
    return Combined(combined, factors, reports)


def _each(values: Values, make: Callable[[str], Tensor], at_once: bool) -> Callable[[str], Tensor]:
    """The function itself; with all tensors made by all threads where they may be in memory."""
    return values.over_tensors(make).pop if at_once else make


def boundless(rule: Sum, reports: Reports) -> dict[int, str]:
    """Whose numbers give a factor outside the range of floats."""
    bad = {}
    for position, report in enumerate(reports):
        try:
            if math.isfinite(rule.factor(report)):
                continue
        except (OverflowError, ZeroDivisionError):
            pass
        bad[position] = "the numbers that it gives are too large or too small to count with"
    return bad


def finite(factors: Sequence[float]) -> list[float]:
    """The factors, where all are numbers.

    Raises:
        CheckpointError: Some are not: then nothing can be combined with them.
    """
    if all(map(math.isfinite, factors)):
        return list(factors)
    raise CheckpointError(
        "The clients cannot be combined: with the numbers that they give, no client has a weight."
    )


def _summed_at_once(
    values: Values,
    rule: Sum,
    reports: Reports,
    checks: Checks,
    *,
    measured: bool,
    exact: bool,
    at_once: bool,
) -> Combined:
    """Sum and measure in one pass: what must be left out is rare, and then the sum is made anew."""
    if bad := boundless(rule, reports):
        return Combined(_nothing, None, reports, bad)
    factors = finite(rule.coefficients(reports))
    if not measured:
        is_mean = abs(math.fsum(factors) - 1.0) < ONE and min(factors) >= 0.0
        combined = values.mean if is_mean and not exact else values.combination
        each = _each(values, lambda name: combined(name, factors), at_once)
        return Combined(each, factors, reports)
    sums, squares = values.combinations(factors)
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
    structure = values.structure
    for name in structure.averaged:
        held = source.checkpoint.read(name)
        if wrong := unusable_values(held.to(compute_dtype(structure.specs[name].dtype))):
            return f"{shown(name)} holds {wrong}"
    return ""


def _merged(values: Values, rule: Merge) -> dict[str, Tensor]:
    """All averaged tensors by a merge method of the engine, in the compute dtype."""
    structure = values.structure
    if not structure.averaged:
        return {}
    members = [_Averaged(s.checkpoint, s.client, structure.averaged) for s in values.sources]
    server = values.server
    base = None if server is None else _Averaged(server, server.id, structure.averaged)
    plan = plan_merge(members, rule.method, dict(rule.parameters), base=base)
    merged = merge_in_memory(plan, members, base)
    return {
        name: merged[name].to(
            structure.wide(name).to_complex() if merged[name].is_complex() else structure.wide(name)
        )
        for name in structure.averaged
    }


class _Averaged:
    """The averaged tensors of a model, under its client's name, which randomness goes by."""

    def __init__(self, checkpoint: Checkpoint, id: str, names: Sequence[str]) -> None:
        self.id = id
        self.metadata, self.read = checkpoint.metadata, checkpoint.read
        specs = checkpoint.specs()
        self._specs = {name: specs[name] for name in names}

    def specs(self) -> dict[str, TensorSpec]:
        return self._specs


def _nothing(name: str) -> Tensor:
    raise KeyError(name)
