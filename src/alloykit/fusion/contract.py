"""How a fusion head is written: a factory with its parameters, and its contract."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alloykit.errors import DataError, InvalidParameter, MissingInput, listing
from alloykit.fusion.head import FittedHead, FusionHead, HeadData, HeadShape, Source
from alloykit.registry import fusion_heads
from alloykit.types import Task

Context = Literal["none", "optional", "required"]

EVERY_TASK: frozenset[Task] = frozenset({"classification", "tokens", "regression"})
CLASSES: frozenset[Task] = frozenset({"classification", "tokens"})
EVERY_SOURCE: frozenset[Source] = frozenset({"outputs", "features"})
OUTPUTS: frozenset[Source] = frozenset({"outputs"})


@dataclass(frozen=True)
class Layer:
    """What a head's factory returns: how to build it and how to train it.

    Attributes:
        build: An untrained module ``(members, context) -> [row, output]`` of that shape.
        fit: ``(data, shape) -> FittedHead``. It is only ever given data that fits the shape:
            finite numbers, one target per row, at least two rows, and two classes for classes.
        context: What these parameters want of a context; None means what the head declares.
        parameters: How the parameters are kept, where not as they were given.
    """

    build: Callable[[HeadShape], nn.Module]
    fit: Callable[[HeadData, HeadShape], FittedHead]
    context: Context | None = None
    parameters: Mapping[str, Any] | None = None


def fusion_head(
    *,
    tasks: frozenset[Task],
    sources: frozenset[Source] = EVERY_SOURCE,
    context: Context = "none",
    candidates: Sequence[Mapping[str, Any]] = ({},),
    formula: str = "",
    paper: str = "",
) -> Callable[[Callable[..., Layer]], Callable[..., FusionHead]]:
    """Register a factory of layers under its own name.

    The decorated factory takes the head's parameters and returns a ``Layer``; calling the
    registered name gives a ``FusionHead`` that also knows its parameters, so that it can be
    rebuilt from its name and parameters, and that checks what it is given before it trains.

    Args:
        tasks: Every task that the head serves.
        sources: What it can be fed: the members' outputs, their features.
        context: Whether it wants numbers that describe the input itself.
        candidates: Parameter sets that ``compare`` should try.
        formula: The head in one line, for the generated documentation.
        paper: Where the head comes from.
    """

    def register(factory: Callable[..., Layer]) -> Callable[..., FusionHead]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def build(*args: Any, **kwargs: Any) -> FusionHead:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            layer = factory(*args, **kwargs)
            head = FusionHead(
                name=factory.__name__,
                parameters=dict(bound.arguments if layer.parameters is None else layer.parameters),
                build=lambda shape: layer.build(_served(head, shape)),
                fit=lambda data, shape: _fit(head, layer, data, shape),
                tasks=frozenset(tasks),
                sources=frozenset(sources),
                context=context if layer.context is None else layer.context,
            )
            return head

        fusion_heads.add(
            build,
            tasks=tasks,
            sources=sources,
            context=context,
            candidates=tuple(candidates),
            formula=formula,
            paper=paper,
        )
        return build

    return register


def candidate_heads(
    task: Task, *, source: Source = "outputs", context: bool = False
) -> list[FusionHead]:
    """Every head, with every parameter set, that is worth trying, in order of name.

    Args:
        task: What the members were trained for.
        source: What they give.
        context: Whether there are numbers that describe the input itself.
    """
    built: list[FusionHead] = [
        entry.build(**parameters)
        for entry in fusion_heads.entries()
        for parameters in entry.contract["candidates"]
    ]
    return [
        head
        for head in built
        if task in head.tasks and source in head.sources and (context or head.context != "required")
    ]


def shown_head(head: FusionHead) -> str:
    """The head as one would type it: "concat(pull=3)"; parameters at their defaults unsaid."""
    known = fusion_heads.entry(head.name).parameters
    given = [f"{k}={v!r}" for k, v in head.parameters.items() if v != known[k].default]
    return f"{head.name}({', '.join(given)})" if given else head.name


def _served(head: FusionHead, shape: HeadShape) -> HeadShape:
    wrong = []
    if shape.task not in head.tasks:
        wrong.append(f"it serves {' and '.join(sorted(head.tasks))}, not {shape.task}")
    if shape.source not in head.sources:
        wrong.append(f"it is fed {' or '.join(sorted(head.sources))}, not {shape.source}")
    if head.sources == OUTPUTS and shape.source == "outputs" and not shape.aligned:
        wrong.append(
            f"it needs members that give {shape.outputs} outputs each, not {list(shape.widths)}"
        )
    if wrong:
        raise InvalidParameter(
            f"The head {shown_head(head)} does not fit:\n{listing(wrong)}\n"
            "concat takes every task, outputs or features, and members of any width."
        )
    if head.context == "required" and shape.context == 0:
        raise MissingInput(
            f"The head {shown_head(head)} needs a context: numbers that describe each input "
            "itself, such as its features. Give them, or choose a head that does without."
        )
    return shape


def _fit(head: FusionHead, layer: Layer, data: HeadData, shape: HeadShape) -> FittedHead:
    shape = _served(head, shape)
    wrong = [*_misfits(data, shape), *_unusable(data, shape)]
    if wrong:
        raise DataError(
            f"The head {shown_head(head)} cannot be trained on this data:\n{listing(wrong)}"
        )
    context = data.context if head.context != "none" else None
    kept = HeadData(
        # What was computed under a caller's graph must not be trained through.
        tuple(member.detach().cpu() for member in data.members),
        data.targets.detach().cpu(),
        None if context is None else context.detach().cpu(),
    )
    with torch.enable_grad():
        fitted = layer.fit(kept, shape)
    return FittedHead(fitted.module.eval(), fitted.chosen, fitted.history)


def _misfits(data: HeadData, shape: HeadShape) -> list[str]:
    rows = len(data.targets)
    widths = tuple(member.shape[-1] for member in data.members)
    wrong = []
    if widths != shape.widths or any(member.ndim != 2 for member in data.members):
        shapes = [list(member.shape) for member in data.members]
        wrong.append(f"members of widths {list(shape.widths)} are needed, and these are {shapes}")
    wrong += [
        f"member {place} has {len(member)} rows for {rows} targets"
        for place, member in enumerate(data.members, start=1)
        if len(member) != rows
    ]
    given = None if data.context is None else list(data.context.shape)
    if shape.context and given != [rows, shape.context]:
        wrong.append(f"a context of shape {[rows, shape.context]} is needed, and this is {given}")
    expected = [rows] if shape.task != "regression" else [rows, shape.outputs]
    if list(data.targets.shape) != expected:
        wrong.append(f"targets of shape {expected} are needed, not {list(data.targets.shape)}")
    if rows < 2:
        wrong.append(f"at least 2 rows are needed, and there are {rows}")
    return wrong


def _unusable(data: HeadData, shape: HeadShape) -> list[str]:
    named = [(f"member {place}", member) for place, member in enumerate(data.members, start=1)]
    if data.context is not None:
        named.append(("the context", data.context))
    if shape.task == "regression":
        named.append(("the targets", data.targets))
    wrong = [f"{name}: {_bad(v)} NaN or infinite numbers" for name, v in named if _bad(v)]
    if shape.task == "regression" or len(data.targets) < 2:
        return wrong
    classes = sorted(set(data.targets.tolist()))
    outside = [label for label in classes if not 0 <= label < shape.outputs]
    if outside:
        shown = ", ".join(f"{label:g}" for label in outside[:10])
        wrong.append(f"labels outside 0 to {shape.outputs - 1}: {shown}")
    elif len(classes) == 1:
        wrong.append(f"every target is class {classes[0]}; a head learns from at least two classes")
    return wrong


def _bad(values: Tensor) -> int:
    return int((~torch.isfinite(values)).sum())
