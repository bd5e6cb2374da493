"""How a merge method is written: a factory whose signature is its parameters, and its contract."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from alloykit.registry import merge_methods
from alloykit.types import MergeMethod, Scan, TensorGroup, Unit

ANY_NUMBER = range(1, 10_000)
WeightKind = Literal["shares", "factors"]


@dataclass(frozen=True)
class Passes:
    """A method that does more than map elements: in which pieces, and after which survey.

    Attributes:
        merge: ``(group, state) -> tensor``, where state is what ``survey`` returned, or None.
        survey: Looks at the whole before anything is merged and returns what ``merge`` must know:
            numbers, small tensors, or a mapping of them.
        unit: The smallest piece that ``merge`` may be given.
        scope: Whether ``survey`` goes over one tensor at a time or over the whole model.
        weights: Overrides the declared kind of weights where it depends on a parameter.
        factors: ``(weights, state) -> factors``, where the result is one sum: one factor per
            member, behind that of the base where it takes part. ``merge`` must give the same sum
            by ``gram.combined``; the engine may then take a faster way to it.
    """

    merge: Callable[[TensorGroup, Any], Tensor]
    survey: Callable[[Scan], Any] | None = None
    unit: Unit = "element"
    scope: Literal["tensor", "model"] = "tensor"
    weights: WeightKind | None = None
    factors: Callable[[Sequence[float], Any], Sequence[float]] | None = None


Factory = Callable[..., Callable[[TensorGroup], Tensor] | Passes]


def merge_method(
    *,
    needs: frozenset[str] = frozenset(),
    optional: frozenset[str] = frozenset(),
    members: range = ANY_NUMBER,
    ordered: bool = False,
    weights: WeightKind = "shares",
    per_member: frozenset[str] = frozenset(),
    linear: bool = False,
    paper: str = "",
) -> Callable[[Factory], Callable[..., MergeMethod]]:
    """Register a factory of merge functions under its own name.

    The decorated factory takes the method's parameters. It returns a pure function
    ``TensorGroup -> Tensor`` that maps elements, or ``Passes``; calling the registered name gives
    a ``MergeMethod`` that also knows its parameters and its contract.

    Args:
        needs: What it must be given besides members ("base", "fisher", "gram").
        optional: What it makes use of where it is given.
        members: How many models it takes, as a range.
        ordered: Whether the order of the members carries meaning.
        weights: "shares" that are non-negative and sum to one, or "factors", any finite numbers.
        per_member: Parameters that may be one number or a list with one per member.
        linear: Whether each element is a sum of the members' own elements with factors, so that
            what is not finite in any of them shows in it.
        paper: Where the method comes from, for the generated documentation.
    """

    def register(factory: Factory) -> Callable[..., MergeMethod]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def build(*args: Any, **kwargs: Any) -> MergeMethod:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            bound.arguments |= {name: _plain(value) for name, value in bound.arguments.items()}
            made = factory(*bound.args, **bound.kwargs)
            passes = made if isinstance(made, Passes) else Passes(lambda group, _: made(group))
            return MergeMethod(
                name=factory.__name__,
                parameters=dict(bound.arguments),
                merge=passes.merge,
                needs=needs,
                optional=optional,
                members=members,
                unit=passes.unit,
                ordered=ordered,
                weights=passes.weights or weights,
                per_member=per_member,
                survey=passes.survey,
                scope=passes.scope,
                linear=linear or passes.factors is not None,
                factors=passes.factors,
            )

        merge_methods.add(
            build,
            needs=needs,
            optional=optional,
            members=members,
            ordered=ordered,
            weights=weights,
            per_member=per_member,
            linear=linear,
            paper=paper,
        )
        return build

    return register


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's, which a plan can write as JSON."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.dim() == 0):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray | Tensor):
        return [_plain(each) for each in value]
    return value
