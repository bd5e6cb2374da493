"""One call of an operation in a traced model, with the symbolic axes of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from alloykit.alignment.axes import Axes

Outline: TypeAlias = Axes | list[Axes] | None
"""The axes of what a call gives: of one tensor, of several, or None where it gives no tensor."""

Rule: TypeAlias = Callable[["Call"], Outline]
"""What an operation does to axes: unifies and freezes those that it takes and says which come out.
None means that it has no answer, and everything that was given is frozen."""


@dataclass(frozen=True)
class Call:
    """An operation with its arguments under the names of its schema.

    Attributes:
        node: Of the traced graph.
        arguments: By name, defaults included; tensors stand there as nodes.
        known: The axes of every earlier node.
    """

    node: fx.Node
    arguments: Mapping[str, Any]
    known: Mapping[fx.Node, Outline]

    @classmethod
    def of(cls, node: fx.Node, known: Mapping[fx.Node, Outline]) -> Call:
        """The call of a node that is an operator of torch."""
        assert isinstance(node.target, torch._ops.OpOverload)
        schema = node.target._schema.arguments
        given = {argument.name: argument.default_value for argument in schema}
        given.update(zip((argument.name for argument in schema), node.args, strict=False))
        return cls(node, {**given, **node.kwargs}, known)

    def axes(self, name: str) -> Axes | None:
        """The axes of one tensor among the arguments, or None where it was not given."""
        node = self.arguments.get(name)
        found = self.known.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, tuple) else None

    def need(self, *names: str) -> list[Axes]:
        """The axes of these tensors, which the operation cannot do without."""
        return [found for name in names if (found := self.axes(name)) is not None]

    def listed(self, name: str) -> list[Axes]:
        """The axes of the tensors of a list."""
        found = [self.known.get(node) for node in self.arguments[name] if node is not None]
        return [axes for axes in found if isinstance(axes, tuple)]

    def tensors(self) -> Iterator[Axes]:
        """The axes of every tensor among the arguments, lists included."""
        for node in self.node.all_input_nodes:
            found = self.known.get(node)
            if isinstance(found, list):
                yield from found
            elif found is not None:
                yield found

    def value(self, name: str) -> Any:
        """An argument that is no tensor."""
        return self.arguments.get(name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that comes out; of the first, where there are several."""
        (first, *_) = self.shapes
        return first

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of all tensors that come out."""
        value = self.node.meta.get("val")
        several = value if isinstance(value, list | tuple) else [value]
        return [tuple(tensor.shape) for tensor in several if isinstance(tensor, Tensor)]
