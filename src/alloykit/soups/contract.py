"""How a soup is written: a factory of choosers, and the choice that a chooser makes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from alloykit.registry import soups
from alloykit.soups.judge import Judge
from alloykit.types import Checkpoint


@dataclass(frozen=True)
class Choice:
    """Which merge validation data chose.

    Attributes:
        method: Registered merge method.
        parameters: Its parameters.
        weights: One per member, in the order in which the members were given.
        value: The metric on validation, in its own direction.
        trials: What was tried on the way: one mapping per trial, fit for JSON.
    """

    method: str
    parameters: Mapping[str, Any]
    weights: tuple[float, ...]
    value: float
    trials: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def mixes(self) -> bool:
        """Whether several models are mixed; one alone keeps its own BatchNorm statistics."""
        if "alpha" in self.parameters:
            return self.parameters["alpha"] not in (0.0, 1.0)
        return sum(weight > 0 for weight in self.weights) > 1


class Chooser(Protocol):
    """Members and a judge -> a choice."""

    def __call__(
        self, members: Sequence[Checkpoint], judge: Judge, base: Checkpoint | None = None
    ) -> Choice:
        """Choose."""


def soup(
    *, needs: frozenset[str] = frozenset({"validation"}), paper: str = ""
) -> Callable[[Callable[..., Chooser]], Callable[..., Chooser]]:
    """Register a factory of choosers under its own name.

    Args:
        needs: What it must be given besides members ("validation", "base").
        paper: Where it comes from, for the generated documentation.
    """

    def register(factory: Callable[..., Chooser]) -> Callable[..., Chooser]:
        @functools.wraps(factory)
        def build(**parameters: Any) -> Chooser:
            return factory(**parameters)

        soups.add(build, needs=needs, paper=paper)
        return build

    return register
