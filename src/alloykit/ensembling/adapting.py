"""Members that differ made alike: each with its own input transform and class list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from alloykit.data.outputs import output_tensor
from alloykit.ensembling.normalising import (
    MODES,
    Numbers,
    Statistics,
    normaliser,
    partition_statistics,
    resized,
    spread,
)
from alloykit.ensembling.stack import member_stack
from alloykit.errors import DataError, InvalidParameter, did_you_mean, listing
from alloykit.evaluation.freezing import require_modules
from alloykit.evaluation.predicting import detect_kind
from alloykit.numerics import is_number, is_whole
from alloykit.types import Kind, Task

ABSENT_MASS = 1e-4
"""Probability that the classes a member does not know share; see ``adapted``."""

MOST_CLASSES = 1 << 24
"""Far above any class list; more would fill the memory."""

Label = str | int

__all__ = ["Adapted", "Statistics", "adapted", "partition_statistics"]


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
    measures 80 points worse on digits. For the same reason, average the weights of the modules
    inside, not of the wrappers, whose statistics belong to no one once they are averaged.

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
        require_modules({"module": module})
        _check_options(size, transform, kind, absent_mass)
        self.module = module
        self.transform = transform
        self.size: tuple[int, ...] | None = None
        if size is not None:
            self.size = (size,) if isinstance(size, int) else tuple(size)
        self.kind = kind
        self.absent_mass = absent_mass
        self.normalises = mean is not None or std is not None
        centre, scale = normaliser(mean, std)
        self.register_buffer("mean", centre)
        self.register_buffer("std", scale)
        self.known, self.classes = 0, 0
        if classes is None and common is not None:
            raise InvalidParameter("'common' needs 'classes': what are this member's outputs?")
        if classes is not None:
            place = _places(classes, common, kind)
            self.known, self.classes = len(classes), len(place)
            self.register_buffer("place", place)
        else:
            self.place = None

    def adaptation(self) -> tuple[Any, ...]:
        """What it does to inputs and classes: equal for members whose weights may be averaged."""
        mean, std = (tuple(tensor.flatten().tolist()) for tensor in (self.mean, self.std))
        place = None if self.place is None else tuple(self.place.tolist())
        return (mean, std, self.size, self.transform, place)

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
            tensor = self._transformed(tensor, self.transform)
        if not self.normalises and self.size is None:
            return tensor
        kept = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), None)
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        if self.size is not None:
            tensor = resized(tensor, self.size)
        if self.normalises:
            mean, std = spread(self.mean, tensor), spread(self.std, tensor)
            tensor = (tensor - mean) / std
        return tensor.to(kept or tensor.dtype)

    def _transformed(self, tensor: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
        found = transform(tensor)
        if not isinstance(found, Tensor):
            raise DataError(
                f"'transform' returned a {type(found).__name__}: it must return the input tensor "
                "as the member is to see it."
            )
        return found

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


def _check_options(size: Any, transform: Any, kind: Any, mass: Any) -> None:
    wrong = []
    sizes = [size] if size is None or is_whole(size) or isinstance(size, str) else size
    sizes = list(sizes) if isinstance(sizes, Sequence) else [sizes]
    if size is not None and not (
        1 <= len(sizes) <= max(MODES) and all(is_whole(s) and s >= 1 for s in sizes)
    ):
        wrong.append(f"'size' must be 1 to {max(MODES)} whole numbers of at least 1. Got {size!r}")
    if transform is not None and not callable(transform):
        wrong.append(f"'transform' must be callable. Got {transform!r}")
    if kind not in (None, *get_args(Kind)):
        wrong.append(f"'kind' must be one of {', '.join(get_args(Kind))}. Got {kind!r}")
    if not is_number(mass) or not 0 <= mass < 1:
        wrong.append(f"'absent_mass' must lie in [0, 1). Got {mass!r}")
    if wrong:
        raise InvalidParameter(f"A member cannot be adapted so:\n{listing(wrong)}")


def _places(
    classes: Sequence[Label], common: Sequence[Label] | int | None, kind: Kind | None
) -> Tensor:
    """Where each common class is among the member's outputs; absent ones at ``len(classes)``."""
    if common is None:
        raise InvalidParameter("'classes' needs 'common': the full list of classes.")
    if not _is_list(classes) or not (_is_list(common) or is_whole(common)):
        raise InvalidParameter(
            "'classes' must be a list of names or numbers, and 'common' such a list or how many "
            f"there are. Got {classes!r} and {common!r}."
        )
    if is_whole(common) and not 1 <= common <= MOST_CLASSES:
        raise InvalidParameter(f"'common' must be 1 to {MOST_CLASSES:,} classes. Got {common}.")
    every = range(int(common)) if is_whole(common) else cast(Sequence[Label], common)
    labels: list[Label] = list(every)
    odd = [
        label for label in (*classes, *labels) if not (isinstance(label, str) or is_whole(label))
    ]
    if odd:
        raise InvalidParameter(f"Classes are names or whole numbers. Got {odd[0]!r}.")
    known, names = set(labels), [str(label) for label in labels]
    wrong = [
        f"{label!r} is not among the common classes.{did_you_mean(str(label), names)}"
        for label in classes
        if label not in known
    ]
    for where, given in (("classes", list(classes)), ("common", labels)):
        repeated = [label for label, count in Counter(given).items() if count > 1]
        wrong += [f"{label!r} is repeated in '{where}'" for label in repeated]
    if not classes:
        wrong.append("'classes' is empty")
    if kind == "values":
        wrong.append("kind='values' has no classes; it must be 'logits' or 'probabilities'")
    if wrong:
        raise InvalidParameter(f"The classes cannot be mapped:\n{listing(wrong)}")
    place: Mapping[Label, int] = {label: number for number, label in enumerate(classes)}
    return torch.tensor([place.get(label, len(classes)) for label in labels])


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)
