"""Inputs as one member was trained to see them: mean, standard deviation and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alloykit.data.batches import parts
from alloykit.data.examples import as_examples
from alloykit.errors import DataError, InvalidParameter, listing

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""How F.interpolate resizes inputs of so many spatial dimensions."""

Numbers = float | Sequence[float] | Tensor


class Statistics(NamedTuple):
    """Mean and standard deviation of a partition's inputs."""

    mean: Tensor
    std: Tensor


def partition_statistics(data: Any, per: Literal["feature", "channel"] = "feature") -> Statistics:
    """Mean and standard deviation of the inputs that one member was trained on.

    Each partition has its own, and a member is only right on inputs normalised as its training
    data was. What does not vary gets the standard deviation 1, so that it becomes 0 everywhere.

    Args:
        data: The partition as any verb takes it, with one tensor of inputs.
        per: "feature": one pair for every number of an example; "channel": one pair for every
            entry of the second dimension, over all others (images [example, channel, ...]).

    Shapes:
        [example, *input] -> [*input] for "feature", [channel] for "channel"; float32

    Raises:
        DataError: Several input tensors, no examples, or inputs that are not finite.

    Example:
        >>> partition_statistics(([[1.0, 5.0], [3.0, 5.0]], [0, 1]))
        Statistics(mean=tensor([2., 5.]), std=tensor([1., 1.]))
    """
    if per not in ("feature", "channel"):
        raise InvalidParameter(f"'per' must be 'feature' or 'channel'. Got {per!r}.")
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for inputs, _ in as_examples(data, "train").batches():
        rows = _rows(parts(inputs), per)
        # Sums about each batch's own mean (Chan): squares of large offsets would cancel.
        own, total = rows.mean(0), count + len(rows)
        away = own - mean
        squares = squares + (rows - own).square().sum(0) + away.square() * count * len(rows) / total
        mean, count = mean + away * len(rows) / total, total
    if not count or not bool(torch.isfinite(squares).all()):
        found = "no examples" if not count else "NaN or infinite inputs"
        raise DataError(f"Statistics cannot be estimated: the partition has {found}.")
    std = (squares / count).sqrt()
    still = std <= 1e-7 * mean.abs().clamp_min(1e-30)
    return Statistics(mean.float(), torch.where(still, torch.ones_like(std), std).float())


def _rows(tensors: Sequence[Tensor], per: str) -> Tensor:
    if len(tensors) != 1:
        raise DataError(
            f"Statistics are of one tensor of inputs, and these have {len(tensors)}. Estimate "
            "them for each on its own, and give the member a transform."
        )
    tensor = tensors[0].double()
    if per == "feature":
        return tensor
    if tensor.ndim < 2:
        raise DataError(
            f"Inputs of the shape {list(tensor.shape)} have no channels: per='feature'."
        )
    return tensor.movedim(1, -1).flatten(0, -2)


def normaliser(mean: Numbers | None, std: Numbers | None) -> tuple[Tensor, Tensor]:
    """Mean and std as tensors, 0 and 1 where not given; InvalidParameter lists all mistakes."""
    centre = _numbers(0.0 if mean is None else mean, "mean")
    scale = _numbers(1.0 if std is None else std, "std")
    centre, scale = (t if t.dtype == torch.float64 else t.float() for t in (centre, scale))
    wrong = [
        f"{name}: {int((~torch.isfinite(values)).sum())} NaN or infinite numbers"
        for name, values in (("mean", centre), ("std", scale))
        if not bool(torch.isfinite(values).all())
    ]
    flat = (~(scale.flatten() > 0)).nonzero().flatten().tolist()
    wrong += [f"std[{place}] is {float(scale.flatten()[place]):g}" for place in flat]
    if not _broadcast(centre.shape, scale.shape):
        wrong.append(f"mean has the shape {list(centre.shape)}, and std {list(scale.shape)}")
    if wrong:
        raise InvalidParameter(
            f"The inputs cannot be normalised with these:\n{listing(wrong)}\n"
            "std must be above 0; what does not vary gets 1, as partition_statistics gives it."
        )
    return centre, scale


def _numbers(given: Numbers, name: str) -> Tensor:
    try:
        return torch.as_tensor(given).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise InvalidParameter(
            f"{name!r} must be a number, or numbers of equal shape. Got {given!r}."
        ) from None


def _broadcast(one: Sequence[int], other: Sequence[int], *, grow: bool = True) -> bool:
    """Whether one shape broadcasts with the other; without ``grow``, to no more than the other."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return all(a in (1, b) or (grow and b == 1) for a, b in pairs)


def spread(values: Tensor, tensor: Tensor) -> Tensor:
    """One number per entry of the second dimension, or a whole example, against a batch."""
    if values.ndim == 1 and tensor.ndim > 1 and values.shape[0] in (1, tensor.shape[1]):
        return values.view(-1, *(1,) * (tensor.ndim - 2))
    if values.ndim >= tensor.ndim or not _broadcast(values.shape, tensor.shape[1:], grow=False):
        raise DataError(
            f"A mean or std of the shape {list(values.shape)} does not fit examples of the shape "
            f"{list(tensor.shape[1:])}: give one number, one per entry of the first of these "
            "dimensions, or a tensor that broadcasts to an example."
        )
    return values


def resized(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    """The batch with its spatial dimensions of that size, with or without a channel dimension."""
    spatial = max(1, tensor.ndim - 2) if len(size) == 1 else len(size)
    bare = tensor.ndim == spatial + 1
    if spatial not in MODES or tensor.ndim - spatial not in (1, 2):
        raise DataError(
            f"Inputs of the shape {list(tensor.shape)} cannot be resized to {list(size)}: one "
            "number per spatial dimension is needed, after [example, channel] or [example]."
        )
    found = F.interpolate(
        tensor.unsqueeze(1) if bare else tensor,
        size=size * spatial if len(size) == 1 else size,
        mode=MODES[spatial],
        # Without a low-pass filter, shrinking an image drops lines of it.
        antialias=spatial == 2,
    )
    return found.squeeze(1) if bare else found
