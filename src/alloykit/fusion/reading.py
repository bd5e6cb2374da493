"""One member on one batch: its output, and what a layer inside of it gave, as rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alloykit.data.outputs import output_tensor
from alloykit.ensembling.stack import member_stack
from alloykit.errors import DataError, InvalidParameter, MissingInput, listing
from alloykit.fusion.features import last_layer, require_layers, watching
from alloykit.fusion.head import Source
from alloykit.types import Kind, Task

Sources = Source | Mapping[str, str]
"""What members give the head: "outputs", "features" (of the last layer), or member -> layer."""

ContextSource = Literal["none", "inputs", "features"]
"""What describes an example itself: nothing, its floating inputs, or all members' features."""


def seen(
    member: nn.Module, layer: str | None, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """A member's output for these inputs, and what its layer gave, where one is named."""
    args, kwargs = _placed(member, args, kwargs)
    if layer is None:
        return output_tensor(member(*args, **kwargs)), None
    with watching(member, [layer]) as found:
        output = output_tensor(member(*args, **kwargs))
    if layer not in found:
        raise DataError(f"The layer {layer!r} was not called, so it gave nothing. Name another.")
    return output, found[layer]


def last_of(member: nn.Module, *args: Any, **kwargs: Any) -> str:
    """The member's last features, found on these inputs; see ``features.last_layer``."""
    return last_layer(member, lambda: seen(member, None, *args, **kwargs)[0])


def output_rows(output: Tensor, kind: Kind, task: Task) -> Tensor:
    """A member's output as float32 rows: log-probabilities of classes, or values."""
    if task == "regression":
        return output.float().flatten(1) if output.ndim > 1 else output.float()[:, None]
    logs: Tensor = member_stack([output.float()], [kind], task)[0]
    return logs.flatten(0, 1) if task == "tokens" else logs


def input_rows(inputs: Iterable[Any], positions: int = 1) -> Tensor:
    """All floating inputs, flattened, as float32 rows; an example's positions share them.

    Raises:
        DataError: There are none.
    """
    flat = [
        value.float().flatten(1) if value.ndim > 1 else value[:, None].float()
        for value in inputs
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    if not flat:
        raise DataError(
            "context='inputs' reads floating inputs, and there are none. Use context='features'."
        )
    rows = torch.cat(flat, dim=-1)
    return rows.repeat_interleave(positions, 0) if positions > 1 else rows


def check_sources(
    members: Mapping[str, nn.Module],
    source: Sources,
    context: ContextSource,
    kinds: Sequence[Kind] | None = None,
) -> None:
    """Refuse a source, context or kinds that do not fit the members, all mistakes at once."""
    if not members:
        raise MissingInput("A fusion needs at least one member.")
    wrong = []
    if isinstance(source, Mapping):
        wrong += [f"'source' names no layer for {name}" for name in members if name not in source]
        strangers = [name for name in source if name not in members]
        wrong += [f"'source' names {name!r}, which is no member" for name in strangers]
        wrong += [
            f"'source' must name the layer of {name} by text. Got {layer!r}"
            for name, layer in source.items()
            if not isinstance(layer, str)
        ]
    elif source not in ("outputs", "features"):
        wrong.append(f"'source' must be 'outputs', 'features' or member -> layer. Got {source!r}")
    if context not in ("none", "inputs", "features"):
        wrong.append(f"'context' must be 'none', 'inputs' or 'features'. Got {context!r}")
    if kinds is not None and len(kinds) != len(members):
        wrong.append(f"{len(kinds)} kinds were given for {len(members)} members")
    if wrong:
        raise InvalidParameter(f"These members cannot be fused so:\n{listing(wrong)}")
    if isinstance(source, Mapping):
        for name, layer in source.items():
            require_layers(members[name], [layer], name)


def layers_of(members: Mapping[str, nn.Module], source: Sources) -> tuple[str, ...] | None:
    """The layers that were named, in the order of the members."""
    return tuple(source[name] for name in members) if isinstance(source, Mapping) else None


def _placed(
    member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs where the member is; under autocast too, which casts on its own."""
    tensors = list(floating_tensors(member))
    if not tensors:
        return args, kwargs
    device, dtype = tensors[0].device, tensors[0].dtype

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        wanted = dtype if value.is_floating_point() else value.dtype
        same = value.dtype == wanted and value.device == device
        return value if same else value.to(device, wanted)

    return tuple(map(place, args)), {name: place(value) for name, value in kwargs.items()}


def floating_tensors(module: nn.Module) -> list[Tensor]:
    """Floating parameters and buffers."""
    every = (*module.parameters(), *module.buffers())
    return [tensor for tensor in every if tensor.is_floating_point()]


def require_equal_rows(rows: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse members that do not say something on each of the same rows."""
    # Compared, not counted: torch.export would take a counted size for a constant.
    if any(tensor.shape[0] != rows[0].shape[0] for tensor in rows):
        lines = [f"{name}: {len(tensor)}" for name, tensor in zip(names, rows, strict=True)]
        raise DataError(
            f"The members give different numbers of rows:\n{listing(lines)}\n"
            "Members are fused row by row: they must read the same examples and positions."
        )
