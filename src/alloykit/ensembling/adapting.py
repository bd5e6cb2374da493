"""Members that differ made alike: each with its own input transform and class list."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alloykit.data.batches import parts
from alloykit.data.examples import as_examples
from alloykit.ensembling.outputs import output_tensor
from alloykit.ensembling.stack import member_stack
from alloykit.errors import DataError, InvalidParameter, did_you_mean, listing
from alloykit.evaluation.predicting import detect_kind
from alloykit.types import Kind, Task

ABSENT_MASS = 1e-4
"""Probability that the classes a member does not know share; see ``adapted``."""

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""How F.interpolate resizes inputs of so many spatial dimensions."""

Numbers = float | Sequence[float] | Tensor
Label = str | int


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


def adapted(
    module: nn.Module,
    *,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: int | Sequence[int] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    classes: Sequence[Label] | None = None,
    common: Sequence[Label] | int | None = None,
    kind: Kind | None = None,
    absent_mass: float = ABSENT_MASS,
) -> Adapted:
    """Wrap a member so that it takes everybody's raw inputs and knows everybody's classes.

    inputs: x -> (resize(transform(x)) - mean) / std; outputs: log p over ``classes`` -> log p
    over ``common``, where each absent class gets absent_mass / (number of absent classes)

    Use it when members were trained on partitions that were normalised differently, on other
    image sizes, or on other classes. The result is a module like any other: average it, fuse it,
    distil it, save it. Mean and std are buffers, so they travel with ``state_dict`` and with an
    exported program. They are never folded into the first layer: that is exact for one member,
    but afterwards the weights of two members no longer live in one space, and averaging them
    measures 80 points worse on digits.

    Args:
        module: The member. It is used, not copied.
        mean: A number, one per channel or feature (second dimension), or a tensor that broadcasts
            to one example.
        std: The same, above 0.
        size: What to resize to: one entry per spatial dimension, or one number for all.
        transform: Any callable or module, applied first, to each input tensor.
        classes: What the module's outputs are, in its order: names or numbers.
        common: All classes in everybody's order: the same labels, or their number.
        kind: What the module returns, "logits" or "probabilities"; found out on the first batch
            where not given. Only read where there is a class map.
        absent_mass: Probability in [0, 1) that all absent classes share. The default 1e-4 leaves a
            linear pool as it is, and is the veto that a log pool of clipped log-probabilities
            gets: small, but not a certainty. 0 becomes 1.2e-38.

    Shapes:
        Several input tensors: the floating ones are transformed, the others passed on. Outputs
        with a class map: [*, len(classes)] -> [*, len(common)] log-probabilities; a single logit
        or probability [example] or [example, 1] becomes two classes first.

    Raises:
        InvalidParameter: Unknown or repeated classes, std not above 0, shapes that do not fit.
        DataError: When called, with inputs or outputs that do not fit.

    Example:
        >>> cats = adapted(nn.Identity(), classes=["cat", "dog"], common=["ant", "cat", "dog"])
        >>> cats(torch.tensor([[0.0, 0.0]])).exp()
        tensor([[1.0000e-04, 4.9995e-01, 4.9995e-01]])
    """
    return Adapted(
        module,
        mean=mean,
        std=std,
        size=size,
        transform=transform,
        classes=classes,
        common=common,
        kind=kind,
        absent_mass=absent_mass,
    )


class Adapted(nn.Module):
    """A member behind its own input transform and class map; made by ``adapted``.

    Args:
        module: The member.
        mean: See ``adapted``, as all others.
        std: Above 0.
        size: To resize to.
        transform: Applied first.
        classes: Of the module's outputs.
        common: All classes.
        kind: Of the module's outputs.
        absent_mass: Of all absent classes together.

    Example:
        >>> Adapted(nn.Identity(), mean=[1.0, 2.0], std=[1.0, 2.0])(torch.tensor([[2.0, 4.0]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    std: Tensor
    place: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        size: int | Sequence[int] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        classes: Sequence[Label] | None = None,
        common: Sequence[Label] | int | None = None,
        kind: Kind | None = None,
        absent_mass: float = ABSENT_MASS,
    ) -> None:
        super().__init__()
        self.module = module
        self.transform = transform
        self.size: tuple[int, ...] | None = None
        if size is not None:
            self.size = (size,) if isinstance(size, int) else tuple(size)
        self.kind = kind
        self.absent_mass = absent_mass
        self.normalises = mean is not None or std is not None
        centre, scale = _normaliser(mean, std)
        self.register_buffer("mean", centre)
        self.register_buffer("std", scale)
        self.known, self.classes = 0, 0
        if classes is None and common is not None:
            raise InvalidParameter("'common' needs 'classes': what are this member's outputs?")
        if classes is not None:
            place = _places(classes, common, kind, absent_mass)
            self.known, self.classes = len(classes), len(place)
            self.register_buffer("place", place)
        else:
            self.place = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Transform the inputs, run the member, map its classes."""
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        alone = len(tensors) == 1

        def change(value: Any) -> Any:
            wanted = isinstance(value, Tensor) and (alone or value.is_floating_point())
            return self.prepared(value) if wanted else value

        given = self.module(
            *(change(value) for value in args),
            **{name: change(value) for name, value in kwargs.items()},
        )
        return given if self.place is None else self._mapped(output_tensor(given), self.place)

    def prepared(self, tensor: Tensor) -> Tensor:
        """One input tensor as the member was trained to see it."""
        if self.transform is not None:
            tensor = self.transform(tensor)
        if not self.normalises and self.size is None:
            return tensor
        kept = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), None)
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        if self.size is not None:
            tensor = _resized(tensor, self.size)
        if self.normalises:
            mean, std = _spread(self.mean, tensor), _spread(self.std, tensor)
            tensor = (tensor - mean) / std
        return tensor.to(kept or tensor.dtype)

    def extra_repr(self) -> str:
        """What it changes."""
        found = ["normalises"] * self.normalises
        if self.size is not None:
            found.append(f"size={list(self.size)}")
        if self.classes:
            found.append(f"{self.known} of {self.classes} classes")
        return ", ".join(found)

    def _mapped(self, outputs: Tensor, place: Tensor) -> Tensor:
        task: Task = "tokens" if outputs.ndim == 3 else "classification"
        if self.kind is None:
            self.kind = detect_kind(outputs, task)
        (logs,) = member_stack([outputs], [self.kind], task)
        if logs.shape[-1] != self.known:
            raise DataError(
                f"The member gives {logs.shape[-1]} outputs, and {self.known} classes were named."
            )
        absent = self.classes - self.known
        if absent:
            each = max(self.absent_mass / absent, torch.finfo(torch.float32).tiny)
            rest = logs.new_full((*logs.shape[:-1], 1), math.log(each))
            logs = torch.cat([logs + math.log1p(-self.absent_mass), rest], dim=-1)
        mapped: Tensor = logs.index_select(-1, place)
        return mapped

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapted:
        """Move or cast the member; mean and std move along but never lose digits."""
        precise = (self.mean, self.std)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in zip(("mean", "std"), precise, strict=True):
            moved = self.get_buffer(name)
            if moved.dtype.itemsize < value.dtype.itemsize:
                setattr(self, name, value.to(moved.device))
        return self


def _normaliser(mean: Numbers | None, std: Numbers | None) -> tuple[Tensor, Tensor]:
    centre = torch.as_tensor(0.0 if mean is None else mean).detach().clone()
    scale = torch.as_tensor(1.0 if std is None else std).detach().clone()
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


def _broadcast(one: Sequence[int], other: Sequence[int], *, grow: bool = True) -> bool:
    """Whether one shape broadcasts with the other; without ``grow``, to no more than the other."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return all(a in (1, b) or (grow and b == 1) for a, b in pairs)


def _spread(values: Tensor, tensor: Tensor) -> Tensor:
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


def _resized(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
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


def _places(
    classes: Sequence[Label], common: Sequence[Label] | int | None, kind: Kind | None, mass: float
) -> Tensor:
    """Where each common class is among the member's outputs; absent ones at ``len(classes)``."""
    if common is None:
        raise InvalidParameter("'classes' needs 'common': the full list of classes.")
    labels: list[Label] = list(range(common)) if isinstance(common, int) else list(common)
    names = [str(label) for label in labels]
    wrong = [
        f"{label!r} is not among the common classes.{did_you_mean(str(label), names)}"
        for label in classes
        if label not in labels
    ]
    for where, given in (("classes", list(classes)), ("common", labels)):
        repeated = list(dict.fromkeys(label for label in given if given.count(label) > 1))
        wrong += [f"{label!r} is repeated in '{where}'" for label in repeated]
    if not classes:
        wrong.append("'classes' is empty")
    if kind == "values":
        wrong.append("kind='values' has no classes; it must be 'logits' or 'probabilities'")
    if not 0 <= mass < 1:
        wrong.append(f"'absent_mass' must lie in [0, 1). Got {mass}")
    if wrong:
        raise InvalidParameter(f"The classes cannot be mapped:\n{listing(wrong)}")
    known: Mapping[Label, int] = {label: place for place, label in enumerate(classes)}
    return torch.tensor([known.get(label, len(classes)) for label in labels])
