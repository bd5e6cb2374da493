"""What a layer inside of a member gives, seen by forward hooks that are gone afterwards."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.errors import DataError, UnknownName, listing
from alloykit.types import Task

INPUT = ":input"
"""After the name of a layer: what goes into it, instead of what comes out."""

CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.GroupNorm,
)
WIDTH_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention)

Watched = dict[str, Tensor]
"""Layer -> what it gave."""


def layer_names(module: nn.Module) -> list[str]:
    """The names of all layers, in the order of the module's definition."""
    return [name for name, _ in module.named_modules() if name]


@contextmanager
def watching(module: nn.Module, layers: Sequence[str]) -> Iterator[Watched]:
    """While it is open, calls of the module leave what these layers gave in the mapping.

    A layer that is called several times leaves its last call. The hooks are removed at the end,
    whatever happens.

    Args:
        module: It is not changed.
        layers: Names as ``layer_names`` gives them: the layer's output; with ":input" behind the
            name, its first input.

    Raises:
        UnknownName: There is no such layer; the names there are, nearest first.
        DataError: A layer gave no tensor.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 3))
        >>> with watching(model, ["1:input", "1"]) as seen:
        ...     _ = model(torch.ones(1, 2))
        >>> seen["1:input"], seen["1"].shape
        (tensor([[1., 1.]]), torch.Size([1, 3]))
    """
    require_layers(module, layers)
    seen: Watched = {}
    found = dict(module.named_modules())
    handles = [_hooked(found[bare(layer)], layer, seen) for layer in dict.fromkeys(layers)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def require_layers(module: nn.Module, layers: Sequence[str], member: str = "") -> None:
    """Refuse names that the module does not have, listing those it has, nearest first."""
    names = layer_names(module)
    missing = [layer for layer in layers if bare(layer) not in names]
    if not missing:
        return
    who = f"The member {member!r}" if member else type(module).__name__
    if not names:
        raise UnknownName(f"{who} has no layers inside: fuse its outputs instead.")
    wanted = bare(missing[0])
    nearest = difflib.get_close_matches(wanted, names, n=len(names), cutoff=0.0)
    raise UnknownName(
        f"{who} has no layer {wanted!r}. All {len(names)}, nearest first:\n{listing(nearest)}\n"
        f"A name stands for what the layer gives; {nearest[0] + INPUT!r} for what goes into it."
    )


def bare(layer: str) -> str:
    """The name of the layer itself."""
    return layer.removesuffix(INPUT)


def last_layer(module: nn.Module, call: Callable[[], Tensor]) -> str:
    """The layer whose values are the last features, found by running the module once.

    That is the input of the module called last among those that own parameters: the head,
    whatever its class. Where the head is no module of its own (parameters used by the parent's
    ``forward``), nothing called gives as many numbers per row as the whole, and the output of
    the module called last is taken.

    Args:
        module: In evaluation mode.
        call: Runs it on some inputs and returns its output.

    Raises:
        DataError: No layer inside owns parameters.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> last_layer(model, lambda: model(torch.ones(1, 2)))
        '2:input'
    """
    names = {id(inner): name for name, inner in module.named_modules() if name}
    calls: list[tuple[str, Any]] = []

    def note(inner: nn.Module, _: Any, output: Any) -> None:
        calls.append((names[id(inner)], output))

    owners = [m for m in module.modules() if m is not module and _owns(m)]
    handles = [owner.register_forward_hook(note) for owner in owners]
    try:
        with torch.no_grad():
            whole = call()
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise DataError(
            f"{type(module).__name__} calls no layer that owns parameters, so there are no "
            "features to find. Name a layer, or fuse outputs."
        )
    name, output = calls[-1]
    inner = module.get_submodule(name)
    return name + INPUT if _is_head(inner, output, whole) else name


def _owns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _is_head(module: nn.Module, output: Any, whole: Tensor) -> bool:
    """Whether the module gives, per row, as many numbers as the whole does."""
    if not isinstance(output, Tensor):
        return False
    dimension = 1 if _channels_first(module, output) else -1
    return output.shape[dimension] == (whole.shape[-1] if whole.ndim > 1 else 1)


def feature_rows(module: nn.Module, layer: str, values: Tensor, task: Task) -> Tensor:
    """What a layer gave as float32 rows: one per example, or per position for tokens.

    Maps [example, channel, *space] are averaged over space; sequences [example, position, width]
    keep the width: positions become rows for tokens, and are averaged otherwise, padding included
    (name a layer that gives one row per example where that matters). A sequence is
    read as [example, channel, position] where the layer is a convolution, a pooling or a batch
    or group norm.

    Args:
        module: The member.
        layer: Which of its layers.
        values: What that layer gave.
        task: What the members are for.

    Shapes:
        -> [example, width], or [example · position, width] for tokens
    """
    first = _channels_first(module.get_submodule(bare(layer)), values)
    if values.ndim <= 1:
        return values.reshape(-1, 1).float()
    if first:
        values = values.movedim(1, -1)
    rows = values.flatten(1, -2) if values.ndim > 2 else values[:, None]
    return (rows.flatten(0, 1) if task == "tokens" else rows.float().mean(1)).float()


def _channels_first(module: nn.Module, values: Tensor) -> bool:
    if values.ndim < 3 or isinstance(module, WIDTH_LAST):
        return False
    return values.ndim > 3 or isinstance(module, CHANNELS_FIRST)


def _hooked(module: nn.Module, layer: str, seen: Watched) -> Any:
    if not layer.endswith(INPUT):
        return module.register_forward_hook(
            lambda _, __, output: seen.__setitem__(layer, _tensor(output, layer))
        )
    return module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.__setitem__(layer, _tensor((*args, *kwargs.values()), layer)),
        with_kwargs=True,
    )


def _tensor(given: Any, layer: str) -> Tensor:
    """The tensor, or the first one in a tuple or mapping."""
    values = [given] if isinstance(given, Tensor) else given
    if isinstance(values, Mapping):
        values = list(values.values())
    found = next((v for v in values if isinstance(v, Tensor)), None) if _several(values) else None
    if found is None:
        raise DataError(f"The layer {layer!r} has no tensor to give: {type(given).__name__}.")
    return found


def _several(given: Any) -> bool:
    return isinstance(given, list | tuple)
