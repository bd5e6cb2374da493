"""What a fusion head is, what it is built for, and what it is trained on: the types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from alloykit.types import Task

Source = Literal["outputs", "features"]
"""What of its members a fusion head is fed."""


@dataclass(frozen=True)
class HeadShape:
    """What a fusion head is built for.

    Attributes:
        widths: Numbers per example that each member gives: classes, values, or features.
        outputs: Classes, or values per example, that the head returns.
        task: What they mean; "tokens" heads see each position as a row of its own.
        context: Numbers per example that describe the input itself; 0 where there are none.
        source: Whether the members give outputs (log-probabilities, or values) or features.
    """

    widths: tuple[int, ...]
    outputs: int
    task: Task
    context: int = 0
    source: Source = "outputs"

    @property
    def aligned(self) -> bool:
        """Whether every member gives what the head returns, so that they have a plain mean."""
        return self.source == "outputs" and all(width == self.outputs for width in self.widths)


@dataclass(frozen=True)
class HeadData:
    """What a fusion head is trained on: what the members gave, computed once.

    Attributes:
        members: One tensor per member ``[row, width]``, float32: log-probabilities for classes,
            values for regression, or features.
        targets: ``[row]`` class indices, or ``[row, output]`` values.
        context: ``[row, context]``, or None.
    """

    members: tuple[Tensor, ...]
    targets: Tensor
    context: Tensor | None = None


@dataclass(frozen=True)
class FittedHead:
    """A trained fusion head.

    Attributes:
        module: ``(members, context) -> [row, output]``: log-probabilities, or values.
        chosen: What was chosen while fitting ("pull", "epochs"), as JSON values.
        history: How the training went, as JSON values; () for heads that are solved.
    """

    module: nn.Module
    chosen: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class FusionHead:
    """A trained layer over what frozen members give.

    Attributes:
        name: Its registered name.
        parameters: What it was built with.
        build: An untrained module of that shape, to load a trained one's tensors into.
        fit: ``(data, shape) -> FittedHead``; the same numbers for the same seed parameter.
        tasks: The tasks that it serves.
        sources: What members may give it: "outputs", "features".
        context: Whether it wants numbers that describe the input: "none", "optional", "required".
    """

    name: str
    parameters: Mapping[str, Any]
    build: Callable[[HeadShape], nn.Module]
    fit: Callable[[HeadData, HeadShape], FittedHead]
    tasks: frozenset[str]
    sources: frozenset[str] = frozenset({"outputs", "features"})
    context: Literal["none", "optional", "required"] = "none"
