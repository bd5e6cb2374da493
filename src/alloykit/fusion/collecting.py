"""What the members say on a split, computed once, as a head is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.data.batches import Inputs, parts, transform
from alloykit.data.examples import Examples
from alloykit.data.splits import IGNORED, check_splits
from alloykit.data.storage import MEMORY_LIMIT, room
from alloykit.errors import DataError, listing
from alloykit.evaluation.predicting import (
    detect_kind,
    evaluating,
    log_probabilities,
    predict,
    running,
)
from alloykit.fusion.features import feature_rows
from alloykit.fusion.gathered import Gathered
from alloykit.fusion.head import HeadData, HeadShape, Source
from alloykit.fusion.module import Fusion
from alloykit.fusion.reading import (
    ContextSource,
    Sources,
    check_sources,
    input_rows,
    last_of,
    layers_of,
    require_equal_rows,
    seen,
)
from alloykit.types import Kind, Task

Progress = Callable[[str, int, int], None]


def collect(
    members: Fusion | Mapping[str, nn.Module], examples: Examples, **asked: Any
) -> HeadData:
    """What a head is trained on; ``gather`` says what can be asked, and tells more.

    Example:
        >>> from alloykit.data.examples import as_examples
        >>> split = as_examples(([[0.0, 1.0], [2.0, 0.0]], [1, 0]), "validation")
        >>> data = collect({"a": nn.Identity(), "b": nn.Identity()}, split)
        >>> len(data.members), data.members[0].shape, data.targets.tolist()
        (2, torch.Size([2, 2]), [1, 0])
    """
    return gather(members, examples, **asked).data


def gather(
    members: Fusion | Mapping[str, nn.Module],
    examples: Examples,
    *,
    task: Task = "classification",
    source: Sources = "outputs",
    context: ContextSource = "none",
    classes: int | None = None,
    progress: Progress | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Gathered:
    """Run every member over the split once, in evaluation mode and without gradients.

    Args:
        members: By name, or a Fusion, which also says the task, source and context.
        examples: Their inputs and targets; targets of -100 are left out for tokens.
        task: What the members were trained for.
        source: What the head is to be fed, as for ``Fusion``.
        context: What is to describe the example itself, as for ``Fusion``.
        classes: Number of classes, where the members' outputs do not say it.
        progress: Called with (what, examples done, examples in all).
        memory_limit: Bytes per member kept in memory; larger ones are memory-mapped.

    Shapes:
        -> members [row, width], targets [row] or [row, output], context [row, context] or None

    Raises:
        DataError: No examples, unusable targets, outputs that do not fit the task, or members
            with different numbers of rows.
        UnknownName: A layer that a member does not have.
    """
    asked = ask(members, examples, task=task, source=source, context=context)
    (examples,) = check_splits([examples], task=asked.task)
    said = [
        answer(asked, name, examples, progress=progress, memory_limit=memory_limit)
        for name in asked.members
    ]
    return assembled(asked, said, examples, classes=classes, memory_limit=memory_limit)


@dataclass(frozen=True)
class Asked:
    """What is to be read of which members.

    Attributes:
        members: By name.
        task: What they were trained for.
        source: What the head is fed.
        context: What describes the example itself.
        kinds: What each member returns, where known.
        layers: The layer of each member to watch, where features are read.
    """

    members: Mapping[str, nn.Module]
    task: Task
    source: Source
    context: ContextSource
    kinds: tuple[Kind, ...] | None
    layers: tuple[str, ...] | None


@dataclass(frozen=True)
class Said:
    """What one member gave on the whole split.

    Attributes:
        outputs: ``[row, output]`` log-probabilities or values.
        features: ``[row, width]``, where they are read.
        kind: What the member returns.
    """

    outputs: Tensor
    features: Tensor | None
    kind: Kind


def ask(
    members: Fusion | Mapping[str, nn.Module],
    examples: Examples,
    *,
    task: Task,
    source: Sources,
    context: ContextSource,
) -> Asked:
    """What is to be read; last layers are found on two of the examples. See ``gather``."""
    if isinstance(members, Fusion):
        named = dict(zip(members.names, members.members, strict=True))
        task, context, source, kinds = members.task, members.context, members.source, members.kinds
        layers = members.layers
    else:
        named, kinds = dict(members), None
        check_sources(named, source, context)
        layers = layers_of(named, source)
    plain: Source = "outputs" if source == "outputs" else "features"
    if plain == "outputs" and context != "features":
        return Asked(named, task, plain, context, kinds, None)
    if layers is None:
        layers = tuple(_last_layer(member, examples) for member in named.values())
    return Asked(named, task, plain, context, kinds, layers)


def _last_layer(member: nn.Module, examples: Examples) -> str:
    inputs = transform(examples.inputs_sample(), lambda tensor: tensor[:2])
    args, kwargs = as_call(inputs)
    with evaluating(member), running("A member", inputs):
        return last_of(member, *args, **kwargs)


def as_call(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments of a call on these inputs."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


class _Reader(nn.Module):
    """A member whose output carries its features behind it, so that one pass gives both."""

    def __init__(self, member: nn.Module, layer: str | None, task: Task) -> None:
        super().__init__()
        self.member, self.layer, self.task = member, layer, task
        self.width = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output, found = seen(self.member, self.layer, *args, **kwargs)
        leading = 2 if self.task == "tokens" else 1
        output = output.reshape(*output.shape[:leading], -1) if output.ndim > leading else output
        output = output[..., None] if output.ndim == leading else output
        self.width = output.shape[-1]
        if found is None or self.layer is None:
            return output
        rows = feature_rows(self.member, self.layer, found, self.task)
        if len(rows) != output[..., 0].numel():
            raise DataError(
                f"The layer {self.layer!r} gives {len(rows)} rows where the member gives "
                f"{output[..., 0].numel()}: name a layer that says something on each position."
            )
        rows = rows.to(output.device).reshape(*output.shape[:leading], -1)
        return torch.cat([output.float(), rows], dim=-1)


def answer(
    asked: Asked,
    name: str,
    examples: Examples,
    *,
    member: nn.Module | None = None,
    progress: Progress | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Said:
    """What the member of that name says on all examples; ``member`` may stand in for it."""
    place = list(asked.members).index(name)
    member = asked.members[name] if member is None else member
    reader = _Reader(member, asked.layers[place] if asked.layers else None, asked.task)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(f"running {name}", done, total)

    try:
        given = predict(reader, examples, progress=report, memory_limit=memory_limit)
    except DataError as error:
        raise DataError(f"Member {name}, on the {examples.name} examples: {error}") from error
    raw = given[..., : reader.width]
    kind = asked.kinds[place] if asked.kinds else detect_kind(raw, asked.task)
    outputs = log_probabilities(raw, kind, memory_limit=memory_limit).flatten(0, -2)
    features = None if reader.layer is None else given[..., reader.width :].flatten(0, -2)
    return Said(outputs, features, kind)


def assembled(
    asked: Asked,
    said: Sequence[Said],
    examples: Examples,
    *,
    classes: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Gathered:
    """What all members said on the examples, with targets and context; checked."""
    names = tuple(asked.members)
    outputs = tuple(member.outputs for member in said)
    features = [member.features for member in said if member.features is not None]
    require_equal_rows(outputs, names)
    rows = outputs if asked.source == "outputs" else tuple(features)
    _require_finite(rows, names)
    targets, owner = _targets(examples, asked.task, len(outputs[0]))
    context = _context(asked.context, features, examples, len(outputs[0]), memory_limit)
    data = HeadData(rows, targets, context)
    shape = _shape(data, outputs, asked, classes)
    kinds = tuple(member.kind for member in said)
    whole = Gathered(data, shape, names, outputs, owner, kinds, asked.layers)
    return _scored(whole) if asked.task == "tokens" else whole


def _require_finite(rows: Sequence[Tensor], names: Sequence[str]) -> None:
    wrong = [
        f"{name}: {count} NaN or infinite"
        for name, member in zip(names, rows, strict=True)
        if (count := int((~torch.isfinite(member)).sum()))
    ]
    if wrong:
        raise DataError(f"Members that cannot be fused on this split:\n{listing(wrong)}")


def _targets(examples: Examples, task: Task, rows: int) -> tuple[Tensor, Tensor]:
    targets = examples.targets
    owner = torch.arange(len(targets))
    if task == "regression":
        return targets.float().reshape(len(targets), -1), owner
    if task == "classification":
        return targets.long(), owner
    if targets.numel() != rows:
        raise DataError(
            f"The members give {rows} positions, and there are {targets.numel()} targets "
            f"(shape {list(targets.shape)}): one target per position is needed."
        )
    return targets.flatten().long(), owner.repeat_interleave(targets.shape[1])


def _context(
    context: ContextSource,
    features: Sequence[Tensor],
    examples: Examples,
    rows: int,
    memory_limit: int,
) -> Tensor | None:
    if context == "none":
        return None
    if context == "features":
        return torch.cat(list(features), dim=-1)
    each, done = rows // len(examples), 0
    found: Tensor | None = None
    for inputs, _ in examples.batches():
        flat = input_rows(parts(inputs), each)
        if found is None:
            found = room((rows, flat.shape[-1]), memory_limit)
        found[done : done + len(flat)] = flat
        done += len(flat)
    return found


def _shape(
    data: HeadData, outputs: Sequence[Tensor], asked: Asked, classes: int | None
) -> HeadShape:
    said = max(output.shape[-1] for output in outputs)
    if asked.task == "regression":
        count = data.targets.shape[1]
    elif asked.source == "outputs":
        count = classes or said
    else:
        # A body without a head says nothing of classes; its features can serve any.
        count = classes or max(said, int(data.targets.max()) + 1)
    return HeadShape(
        widths=tuple(member.shape[-1] for member in data.members),
        outputs=count,
        task=asked.task,
        context=0 if data.context is None else data.context.shape[-1],
        source=asked.source,
    )


def _scored(whole: Gathered) -> Gathered:
    """Without the tokens that are not scored."""
    scored = (whole.data.targets != IGNORED).nonzero().flatten()
    return whole if len(scored) == len(whole.owner) else whole.keep(scored)
