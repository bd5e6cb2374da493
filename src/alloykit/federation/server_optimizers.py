"""What FedAvgM, FedAdam, FedYogi and FedAdagrad share: an optimizer's step on the server.

The mean change of the clients takes the place of a gradient, with the sign turned: it points to
where the model should go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from alloykit.errors import InvalidParameter
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import Aggregator, Given, Parts, Step

Slots = Mapping[str, Tensor]
Change = Callable[[Given], tuple[Tensor, Slots]]
Of = str | Mapping[str, Any]
"""An aggregator's name, or a mapping of its name as "method" and its parameters."""

FIRST, SECOND = "first_moment", "second_moment"


def with_step(of: Of, change: Change) -> Parts:
    """The parts of another aggregator, with a step behind its own.

    Statistics of BatchNorm are what the other aggregator makes of them. The other one's slots
    are kept under "of.", so that two optimizers on top of each other do not share any.
    """
    inner = aggregator_of(of)
    return Parts(
        rule=inner.rule,
        step=Step(_behind(inner.step, change), inner.step.buffers if inner.step else None),
        numbers=inner.numbers,
        control=inner.control,
        asks=inner.asks | {"server"},
        private=inner.private,
    )


def aggregator_of(of: Of) -> Aggregator:
    """The aggregator of a name, or of a mapping of its name and parameters.

    Raises:
        UnknownName: There is no such aggregator.
        InvalidParameter: A mapping without "method", or parameters that it does not take.

    Example:
        >>> aggregator_of({"method": "krum", "num_malicious": 1}).parameters
        {'num_malicious': 1}
    """
    if isinstance(of, str):
        return as_aggregator(of)
    if not isinstance(of, Mapping) or not isinstance(of.get("method"), str):
        raise InvalidParameter(
            "The 'of' parameter must be the name of an aggregator, or a mapping such as "
            f"{{'method': 'krum', 'num_malicious': 1}}. Got {of!r}."
        )
    parameters = {name: value for name, value in of.items() if name != "method"}
    return as_aggregator(of["method"], parameters)


def _behind(first: Step | None, change: Change) -> Change:
    if first is None:
        return change

    def both(given: Given) -> tuple[Tensor, Slots]:
        under = {k.removeprefix("of."): v for k, v in given.slots.items() if k.startswith("of.")}
        combined, kept = first.change(dataclasses.replace(given, slots=under))
        result, slots = change(dataclasses.replace(given, combined=combined))
        return result, {**slots, **{f"of.{name}": tensor for name, tensor in kept.items()}}

    return both


def momentum_step(given: Given, learning_rate: float, momentum: float) -> tuple[Tensor, Slots]:
    """One step of gradient descent with heavy-ball momentum.

    m = momentum · m + change; new = server + learning_rate · m

    Shapes:
        server [*shape], combined [*shape] -> [*shape]
    """
    change = given.combined - given.server
    if not momentum:
        return torch.add(given.server, change, alpha=learning_rate), {}
    if FIRST in given.slots:
        change = torch.add(change, given.slots[FIRST], alpha=momentum)
    return torch.add(given.server, change, alpha=learning_rate), {FIRST: change}


def longer_steps(learning_rate: float) -> Step | None:
    """Steps from the server's model to the combined one and beyond; None where they end there.

    What a factor in the rule would do, but not to statistics of BatchNorm, whose variances must
    not become negative.
    """
    if learning_rate == 1.0:
        return None
    return Step(lambda given: momentum_step(given, learning_rate, momentum=0.0))


def adaptive_step(
    given: Given,
    grow: Callable[[Tensor, Tensor], Tensor],
    *,
    learning_rate: float,
    beta_1: float,
    tau: float,
) -> tuple[Tensor, Slots]:
    """One step whose length is divided, element by element, by the size of earlier changes.

    m = beta_1 · m + (1 − beta_1) · change; v = grow(v, change²);
    new = server + learning_rate · m / (√v + tau). m and v begin at 0.

    Args:
        given: The server's tensor, the combined one and the slots m and v.
        grow: ``(v, change²) -> v``.
        learning_rate: Of the server.
        beta_1: How much of m is kept.
        tau: The smallest divisor.

    Shapes:
        server [*shape], combined [*shape] -> [*shape]
    """
    change = given.combined - given.server
    squares = change.square()
    first = given.slots[FIRST] if FIRST in given.slots else torch.zeros_like(change)
    second = given.slots[SECOND] if SECOND in given.slots else torch.zeros_like(change)
    first = torch.add(first * beta_1, change, alpha=1.0 - beta_1)
    second = grow(second, squares)
    step = first / second.sqrt().add_(tau)
    return torch.add(given.server, step, alpha=learning_rate), {FIRST: first, SECOND: second}
