"""A model's graph, followed once, so that every axis of every tensor of it has its atoms."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from alloykit.alignment.axes import Atom, Axes, atoms, axis, fixed, freeze
from alloykit.alignment.calls import Outline
from alloykit.alignment.exporting import INSIDE, exported
from alloykit.alignment.operations import followed
from alloykit.alignment.permuting import identity
from alloykit.data.batches import Inputs


@dataclass(frozen=True)
class Traced:
    """What a trace says about a model's tensors.

    Attributes:
        axes: Name in the state dict -> symbolic axes; tied names have the same.
        together: The free atoms of each tensor on the way from inputs to outputs.
        unknown: Operations that no rule knows, each once; what they touch is frozen.
    """

    axes: Mapping[str, Axes]
    together: frozenset[frozenset[Atom]]
    unknown: tuple[str, ...]


def trace(model: nn.Module, inputs: Inputs) -> Traced:
    """Follow a model's graph, as torch.export gives it, and unify the axes that go together.

    Args:
        model: In evaluation mode for the trace, and left as it was.
        inputs: A batch that the model can be called with. At least two examples: a single one
            may make a model take another path.

    Raises:
        AlignmentError: torch.export cannot trace the model, or it gives no tensors.
        DataError: The model cannot be run on these inputs.
    """
    # A copy, since export assigns to attributes of some modules, as recurrent ones.
    model = copy.deepcopy(model)
    program = exported(model, inputs)
    tensors = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    walk = _Walk()
    known = walk.begun(program, tensors)
    for outline in walk.through(program.graph_module, known):
        freeze(*(axis for axes in _several(outline) for axis in axes))
    keys = {name: identity(name, tensor) for name, tensor in tensors.items()}
    # What the trace does not use says nothing, and stays as it is.
    found = {
        name: walk.used[key] if key in walk.used else fixed(tensors[name].shape)
        for name, key in keys.items()
    }
    return Traced(found, walk.together(), tuple(walk.unknown))


@dataclass
class _Walk:
    """What is found on the way through a graph and the graphs inside of it."""

    used: dict[tuple[object, ...], Axes] = field(default_factory=dict)
    seen: list[Axes] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)

    def begun(
        self, program: torch.export.ExportedProgram, tensors: Mapping[str, Tensor]
    ) -> dict[fx.Node, Outline]:
        """The axes of what goes in: new ones for the model's tensors, fixed ones for the rest."""
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        known: dict[fx.Node, Outline] = {}
        for node in program.graph.find_nodes(op="placeholder"):
            spec = specs[node.name]
            name = (spec.target or "").removeprefix(INSIDE)
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and name in tensors:
                if node.users:
                    new = tuple(axis(size) for size in tensors[name].shape)
                    known[node] = self.used.setdefault(identity(name, tensors[name]), new)
            else:
                known[node] = _constant(node.meta.get("val"))
        self.seen += [axes for outline in known.values() for axes in _several(outline)]
        return known

    def through(self, graph: fx.GraphModule, known: dict[fx.Node, Outline]) -> list[Outline]:
        """What a graph gives, one by one; ``known`` holds what goes in, and is filled."""
        for node in graph.graph.nodes:
            if node.op == "call_function":
                known[node] = self._called(graph, node, known)
                self.seen += _several(known[node])
            elif node.op == "get_attr":
                known[node] = _constant(getattr(graph, str(node.target), None))
            elif node.op == "output":
                return [known.get(given) for given in node.args[0]]
        return []

    def _called(
        self, graph: fx.GraphModule, node: fx.Node, known: Mapping[fx.Node, Outline]
    ) -> Outline:
        if (region := _region(graph, node)) is None:
            outline, name = followed(node, known)
            self.unknown |= {name: None} if name else {}
            return outline
        inner, given = region
        inside = {
            place: known.get(outer) if isinstance(outer, fx.Node) else None
            for place, outer in zip(inner.graph.find_nodes(op="placeholder"), given, strict=True)
        }
        results = self.through(inner, inside)
        return [outline if isinstance(outline, tuple) else () for outline in results]

    def together(self) -> frozenset[frozenset[Atom]]:
        """The free atoms of every tensor that was seen."""
        found = (
            frozenset(atom for axis in axes for atom in atoms(axis) if not atom.frozen)
            for axes in self.seen
        )
        return frozenset(filter(None, found))


def _constant(value: object) -> Outline:
    return fixed(value.shape) if isinstance(value, Tensor) else None


def _several(outline: Outline) -> list[Axes]:
    return outline if isinstance(outline, list) else [] if outline is None else [outline]


REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
"""Operators that only say how a part of the graph is run."""


def _region(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, list[Any]] | None:
    """The graph inside of a region without gradients or under autocast, and what it is given."""
    if getattr(node.target, "__name__", "") in REGIONS:
        for place, given in enumerate(node.args):
            if isinstance(given, fx.Node) and given.op == "get_attr":
                return getattr(graph, str(given.target)), list(node.args[place + 1 :])
    return None
