"""Aggregators by name: those of this package, and every merge method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from alloykit.errors import InvalidParameter, UnknownName, did_you_mean
from alloykit.federation.contract import Aggregator, Blocks, Merge, Parts, Rule, assembled
from alloykit.numerics import is_whole
from alloykit.registry import aggregators, merge_methods
from alloykit.types import MergeMethod, TensorGroup


def as_aggregator(
    method: str | Aggregator, parameters: Mapping[str, Any] | None = None
) -> Aggregator:
    """An aggregator by name, or as it is.

    Names of merge methods (``median``, ``trimmed_mean``, ``ties``, ...) give that merge of the
    clients, all of them with the same weight, whatever they say of their examples; where it needs
    a base, the server's model is the base.

    Args:
        method: A registered name, or an aggregator.
        parameters: Its parameters.

    Raises:
        UnknownName: There is neither an aggregator nor a merge method of that name.
        InvalidParameter: Parameters that it does not take, or outside their ranges.

    Example:
        >>> as_aggregator("trimmed_mean", {"trim": 0.3}).needs
        'blocks'
    """
    given = dict(parameters or {})
    if isinstance(method, Aggregator):
        if given:
            raise InvalidParameter(
                f"Parameters belong to a name; {method.name} was given ready made, with "
                f"{method.parameters}."
            )
        return method
    if method in aggregators.names():
        built: Aggregator = aggregators.build(method, **given)
        return built
    if method in merge_methods.names():
        return _of_merge(merge_methods.build(method, **given))
    names = sorted({*aggregators.names(), *merge_methods.names()})
    raise UnknownName(
        f"There is no aggregator {method!r}.{did_you_mean(str(method), names)} "
        f"Aggregators: {', '.join(aggregators.names())}; and every merge method: "
        "alloykit methods."
    )


def with_fewer_malicious(aggregator: Aggregator, found: int) -> Iterator[Aggregator]:
    """The aggregator, then with a ``num_malicious`` that is less by one, two, up to ``found``.

    Malicious clients that were found out by what they sent are not among those that are left, so
    that fewer clients are enough.

    Example:
        >>> krum = as_aggregator("krum", {"num_malicious": 3})
        >>> [each.parameters["num_malicious"] for each in with_fewer_malicious(krum, 2)]
        [3, 2, 1]
    """
    yield aggregator
    most = aggregator.parameters.get("num_malicious")
    if is_whole(most) and aggregator.name in aggregators.names():
        for fewer in range(most - 1, max(most - found, 0) - 1, -1):
            yield aggregators.build(
                aggregator.name, **{**aggregator.parameters, "num_malicious": fewer}
            )


def _of_merge(method: MergeMethod) -> Aggregator:
    rule: Rule
    if method.survey is None and method.unit == "element" and not method.ordered:
        rule = Blocks(lambda group: _block(method, group))
    else:
        rule = Merge(method.name, method.parameters)
    asks = frozenset({"server"} if "base" in method.needs else set())
    return assembled(method.name, method.parameters, Parts(rule), asks)  # type: ignore[arg-type]


def _block(method: MergeMethod, group: TensorGroup) -> Tensor:
    return method.merge(group, None)
