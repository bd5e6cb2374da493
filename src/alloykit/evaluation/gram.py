"""Gram matrices of what a model's linear and convolutional layers see on data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alloykit.data.batches import Batch, forward, placed
from alloykit.data.examples import Examples
from alloykit.errors import DataError, MissingInput
from alloykit.evaluation.predicting import evaluating, unwrapped

Progress = Callable[[str, int, int], None]
Look = Callable[[str, nn.Module, Tensor], None]

PATCH_BYTES = 32 << 20
"""Room for the patches of a convolution's inputs that are laid out at a time."""


def gram_matrices(
    model: nn.Module,
    examples: Examples,
    *,
    layers: Collection[str] | None = None,
    stop_after: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Xᵀ·X / n of the inputs X of every linear and convolutional layer.

    A row of X is one position of one example; for a convolution it is the patch that one output
    position sees. A layer that is called several times counts all its calls.

    Args:
        model: Run in evaluation mode, where it is; it is not changed.
        examples: Some hundred examples of what the model is for; targets are not looked at.
        layers: Names of the layers to look at; by default all of ``linear_layers``.
        stop_after: End every run after that many calls of these layers; by default run to the end.
        progress: Called after every batch with (what, examples done, examples in all).

    Returns:
        Name of each weight ("layer.weight") -> its Gram matrix [in, in], float32, on the CPU; for
        convolutions in is in_channels · kernel size. Layers that were never called are missing:
        torch's attention, for one, uses the weights of its projections directly.

    Raises:
        MissingInput: The model has no such layers, or none of them was called.
        DataError: Inputs that are not finite.

    Example:
        >>> from alloykit.data.examples import as_examples
        >>> split = as_examples((torch.tensor([[1.0, 0.0], [3.0, 2.0]]), [0, 1]), "train")
        >>> gram_matrices(nn.Sequential(nn.Linear(2, 1)), split)["0.weight"]
        tensor([[5., 3.],
                [3., 2.]])

    References:
        Jin, Ren, Preoţiuc-Pietro, Cheng: Dataless Knowledge Fusion by Merging Weights of Language
        Models, 2022, arXiv:2212.09849.
    """
    every = linear_layers(model)
    chosen = {name: every[name] for name in every if layers is None or name in layers}
    sums = {name: _Sum() for name in chosen}

    def tell(done: int) -> None:
        if progress is not None:
            progress("Gram matrices", done, len(examples))

    _run(model, examples.batches(), chosen, lambda n, m, x: sums[n].add(m, x), stop_after, tell)
    found = {f"{name}.weight": _usable(name, each) for name, each in sums.items() if each.rows}
    if not found:
        raise MissingInput(
            f"{type(unwrapped(model)).__name__} called no linear or convolutional layer, and Gram "
            "matrices are of the inputs of those. Merge it with a method that needs no statistics."
        )
    return found


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weight is a matrix (out, in) that multiplies every position of the input.

    Transposed and grouped convolutions are not among them: the rows or groups of theirs see
    different inputs.
    """
    return {
        name: layer
        for name, layer in unwrapped(model).named_modules()
        if isinstance(layer._parameters.get("weight"), nn.Parameter)
        and (
            isinstance(layer, nn.Linear)
            or (isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1)
        )
    }


def calls_of_layers(model: nn.Module, examples: Examples) -> list[str]:
    """The names of these layers in the order in which the first batch calls them."""
    calls: list[str] = []
    first = itertools.islice(examples.batches(), 1)
    _run(model, first, linear_layers(model), lambda name, *_: calls.append(name))
    return calls


class _Sum:
    """Σ xᵀ·x over rows, in float64; every batch's own part in float32 at least."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.rows = 0

    def add(self, layer: nn.Module, inputs: Tensor) -> None:
        for rows in _rows_of(layer, inputs):
            wide = rows if rows.dtype == torch.float64 else rows.float()
            self.total = self.total + (wide.T @ wide).double()
            self.rows += len(rows)


class _Enough(Exception):
    """All that was to be looked at has been seen; the rest of the run would be for nothing."""


def _run(
    model: nn.Module,
    batches: Iterable[Batch],
    layers: Mapping[str, nn.Module],
    look: Look,
    stop_after: int | None = None,
    tell: Callable[[int], None] = lambda _: None,
) -> None:
    """Run batch after batch, showing ``look`` what every layer is given."""
    inner, done, left = unwrapped(model), 0, stop_after

    def called(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal left
        look(name, layer, args[0] if args else kwargs["input"])
        if left is not None:
            left -= 1
            if left == 0:
                raise _Enough

    hooks = [
        layer.register_forward_pre_hook(partial(called, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with evaluating(inner):
            for inputs, targets in batches:
                left = stop_after
                with suppress(_Enough):
                    forward(inner, placed(inputs, inner))
                done += len(targets)
                tell(done)
    finally:
        for hook in hooks:
            hook.remove()


def _rows_of(layer: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """What multiplies the weight, [row, in]; of a convolution some examples at a time."""
    if isinstance(layer, nn.Linear):
        yield inputs.reshape(-1, inputs.shape[-1])
        return
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    batch = inputs if inputs.dim() == layer.weight.dim() else inputs[None]
    size = inputs[0].numel() * layer.weight[0, 0].numel() * inputs.element_size()
    for some in torch.split(batch, max(1, PATCH_BYTES // max(1, size))):
        yield _patches(layer, some)


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """The patch that every output position sees, [example · position, in · kernel size]."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    spaces = range(2, inputs.dim())
    out = [
        (padded.shape[d] - layer.dilation[d - 2] * (layer.kernel_size[d - 2] - 1) - 1)
        // layer.stride[d - 2]
        + 1
        for d in spaces
    ]
    taps = []
    for offsets in itertools.product(*(range(size) for size in layer.kernel_size)):
        place = [slice(None), slice(None)]
        for offset, dilation, stride, count in zip(
            offsets, layer.dilation, layer.stride, out, strict=True
        ):
            start = offset * dilation
            place.append(slice(start, start + (count - 1) * stride + 1, stride))
        taps.append(padded[tuple(place)].flatten(2))
    # [example, in, kernel, position] -> rows whose columns are ordered as the weight's.
    stacked = torch.stack(taps, dim=2)
    return stacked.flatten(1, 2).transpose(1, 2).flatten(0, 1)


def _usable(name: str, total: _Sum) -> Tensor:
    gram = (torch.as_tensor(total.total) / total.rows).to("cpu", torch.float32)
    if not bool(torch.isfinite(gram).all()):
        raise DataError(
            f"The inputs of {name} are not finite on these examples, or overflow when they are "
            "squared. Look at the data, and at the layers before it."
        )
    return gram
