"""How an aggregator is written: a factory with its parameters, and its contract."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from alloykit.registry import aggregators
from alloykit.types import TensorGroup

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Asks = Literal["num_examples", "steps", "loss", "norm", "staleness", "control", "server"]
"""What an aggregator must know besides the clients' tensors. "norm" is measured by the server;
"server" is the model that the clients started from."""

Needs = Literal["sum", "gram", "blocks", "models"]
"""What an aggregator looks at: one client at a time, inner products of the clients, the values of
all clients at one place, or whole models."""


@dataclass(frozen=True)
class Report:
    """What the server knows of one update that counts, in numbers.

    Attributes:
        client: Who sent it.
        num_examples: Examples that it was trained on; 1 where nobody says.
        steps: Local steps, in the sense of FedNova; None where not said.
        loss: Loss of the server's model on the client's data, before training; None where not
            said.
        staleness: How many rounds ago the client took the server's model.
        norm: 2-norm of its delta over all averaged tensors; None where nothing asks for it.
    """

    client: str
    num_examples: float = 1.0
    steps: float | None = None
    loss: float | None = None
    staleness: int = 0
    norm: float | None = None


Reports = Sequence[Report]


@dataclass(frozen=True)
class ServerState:
    """What the server keeps from round to round.

    Attributes:
        round: Rounds that ended, with a new model or not.
        numbers: By name.
        tensors: Slot -> name of a tensor of the model -> tensor.
    """

    round: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sum:
    """server + Σ factorᵢ · (clientᵢ - server) / divisor: one client at a time, in any order.

    Attributes:
        factor: Of one update, from its own report.
        divisor: Of the sum, from all reports. A divisor, because n/(3·n) is 1/3 to the bit.
    """

    factor: Callable[[Report], float]
    divisor: Callable[[Reports], float]

    def coefficients(self, reports: Reports) -> list[float]:
        """What the delta of every client is multiplied with."""
        divisor = self.divisor(reports)
        return [self.factor(report) / divisor for report in reports]


@dataclass(frozen=True)
class Gram:
    """server + Σ cᵢ · (clientᵢ - server), with c from the inner products of the deltas.

    Attributes:
        coefficients: ``(products, reports) -> c``; products ``[client, client]`` in float64.
    """

    coefficients: Callable[[Matrix, Reports], Sequence[float]]


@dataclass(frozen=True)
class Blocks:
    """What looks at the values of all clients, element by element.

    Attributes:
        combine: ``group -> tensor``, as in a merge method: a flat block of every client, all of
            weight 1/n, the server's as ``base`` where it is known.
        chosen: ``(products, reports) -> positions`` of the clients that take part; None for all.
    """

    combine: Callable[[TensorGroup], Tensor]
    chosen: Callable[[Matrix, Reports], Sequence[int]] | None = None


@dataclass(frozen=True)
class Merge:
    """A merge method that the engine of merges runs, with the server's model as base.

    Attributes:
        method: Its registered name.
        parameters: Its parameters.
    """

    method: str
    parameters: Mapping[str, Any]


Rule = Sum | Gram | Blocks | Merge


@dataclass(frozen=True)
class Given:
    """One tensor at the end of a round.

    Attributes:
        name: Of the tensor.
        server: The server's, in the compute dtype.
        combined: What the rule made of the clients', in the same dtype.
        slots: What the step kept of this tensor: slot -> tensor; empty in the first round.
        round: Number of this round, from 1.
        clients: Number of clients that counted.
        numbers: The state's numbers, before this round.
        total: Sum of what the clients' deltas were multiplied with; 1 where no such number exists.
    """

    name: str
    server: Tensor
    combined: Tensor
    slots: Mapping[str, Tensor]
    round: int
    clients: int
    numbers: Mapping[str, float]
    total: float = 1.0


@dataclass(frozen=True)
class Step:
    """What the server does with the combined model: an optimizer's step, or noise.

    Attributes:
        change: ``given -> (tensor, slots)``; called for floating tensors that are trained, and
            not for what is only averaged (statistics of BatchNorm).
        buffers: ``given -> tensor`` for those; None takes the combined one as it is.
    """

    change: Callable[[Given], tuple[Tensor, Mapping[str, Tensor]]]
    buffers: Callable[[Given], Tensor] | None = None


@dataclass(frozen=True)
class Parts:
    """What an aggregator's factory returns.

    Attributes:
        rule: The rule, or ``state -> rule`` where it changes from round to round.
        step: What follows it.
        numbers: ``(state, reports) -> numbers`` that the state keeps for the next round.
        control: ``number of clients -> factor``: what the mean change of the clients' control
            variates is multiplied with; None where there are none.
        asks: What these parameters ask for besides what the contract says.
        private: Whether no client may decide about another: limits of ``Checks`` that compare
            clients do not apply.
    """

    rule: Rule | Callable[[ServerState], Rule]
    step: Step | None = None
    numbers: Callable[[ServerState, Reports], Mapping[str, float]] | None = None
    control: Callable[[int], float] | None = None
    asks: frozenset[Asks] = frozenset()
    private: bool = False


@dataclass(frozen=True)
class Aggregator:
    """A way of making one model from the models of several clients.

    Attributes:
        name: Its registered name.
        parameters: What it was built with, so that it can be rebuilt by name.
        rule: ``state -> rule`` of a round.
        needs: What the rule looks at; "sum" is what secure aggregation could carry.
        asks: What must be known besides the clients' tensors.
        step: What follows the rule, or None.
        numbers: Numbers that the state keeps, or None.
        control: See ``Parts``.
        private: See ``Parts``.
    """

    name: str
    parameters: Mapping[str, Any]
    rule: Callable[[ServerState], Rule]
    needs: Needs
    asks: frozenset[Asks] = frozenset()
    step: Step | None = None
    numbers: Callable[[ServerState, Reports], Mapping[str, float]] | None = None
    control: Callable[[int], float] | None = None
    private: bool = False


def aggregator(
    *, asks: frozenset[Asks] = frozenset(), formula: str = "", paper: str = ""
) -> Callable[[Callable[..., Parts]], Callable[..., Aggregator]]:
    """Register a factory of parts under its own name.

    The decorated factory takes the aggregator's parameters and returns ``Parts``; calling the
    registered name gives an ``Aggregator`` that also knows its parameters and what it needs.

    Args:
        asks: What must be known besides the clients' tensors.
        formula: The aggregator in one line, for the generated documentation.
        paper: Where it comes from.
    """

    def register(factory: Callable[..., Parts]) -> Callable[..., Aggregator]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def build(*args: Any, **kwargs: Any) -> Aggregator:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return assembled(factory.__name__, bound.arguments, factory(*args, **kwargs), asks)

        aggregators.add(build, asks=asks, formula=formula, paper=paper)
        return build

    return register


def assembled(
    name: str, parameters: Mapping[str, Any], parts: Parts, asks: frozenset[Asks]
) -> Aggregator:
    """The aggregator of these parts."""
    of_round = _constant(parts.rule) if isinstance(parts.rule, Rule) else parts.rule
    return Aggregator(
        name=name,
        parameters=dict(parameters),
        rule=of_round,
        needs=needs_of(of_round(ServerState())),
        asks=asks | parts.asks,
        step=parts.step,
        numbers=parts.numbers,
        control=parts.control,
        private=parts.private,
    )


def needs_of(rule: Rule) -> Needs:
    """What a rule looks at."""
    if isinstance(rule, Sum):
        return "sum"
    if isinstance(rule, Gram):
        return "gram"
    return "blocks" if isinstance(rule, Blocks) else "models"


def _constant(rule: Rule) -> Callable[[ServerState], Rule]:
    return lambda state: rule
