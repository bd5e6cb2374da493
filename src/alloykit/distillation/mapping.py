"""Teachers whose classes differ from the student's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.data.batches import Inputs
from alloykit.data.outputs import output_tensor
from alloykit.distillation.teacher import class_counts
from alloykit.ensembling.adapting import adapted
from alloykit.ensembling.stack import member_stack
from alloykit.errors import DataError, InvalidParameter, did_you_mean, listing
from alloykit.evaluation.predicting import detect_kind
from alloykit.types import Kind, Task

ClassMap = Sequence[int | None]
"""For each output of a teacher the number of the student's class, or None where it has none."""


def mapped_teachers(
    members: Mapping[str, nn.Module],
    mapping: ClassMap | Mapping[str, ClassMap] | None,
    classes: int,
) -> dict[str, nn.Module]:
    """The teachers, each behind its class map where it has one.

    Args:
        members: The teachers by name.
        mapping: One map for all, or one per teacher by name.
        classes: Classes of the student.

    Raises:
        InvalidParameter: Unknown teachers, or classes that the student does not have.

    Example:
        >>> teacher = mapped_teachers({"a": nn.Identity()}, [2, 0, None], 3)["a"]
        >>> teacher(torch.tensor([[0.0, 0.0, 9.0]])).exp().round(decimals=2)
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    if mapping is None:
        return dict(members)
    if not isinstance(mapping, Mapping):
        return {name: _mapped(module, mapping, classes) for name, module in members.items()}
    unknown = [name for name in mapping if name not in members]
    if unknown:
        hint = did_you_mean(unknown[0], list(members))
        raise InvalidParameter(
            f"The mapping names {', '.join(unknown)}; the teachers are {', '.join(members)}.{hint}"
        )
    return {
        name: _mapped(module, mapping[name], classes) if name in mapping else module
        for name, module in members.items()
    }


def check_classes(members: Mapping[str, nn.Module], inputs: Inputs, classes: int) -> None:
    """Refuse teachers with another number of classes than the student, and name the option.

    Raises:
        DataError: All such teachers are listed.
    """
    counts = class_counts(members, inputs)
    wrong = [f"{name}: {count} classes" for name, count in counts.items() if count != classes]
    if wrong:
        raise DataError(
            f"The student has {classes} classes, and these teachers have others:\n"
            f"{listing(wrong)}\n"
            "Say which of the student's classes each output is, with mapping=[3, 0, None, ...] "
            "(None: the student does not have it), or one such list per teacher by name."
        )


def _mapped(module: nn.Module, mapping: ClassMap, classes: int) -> nn.Module:
    if isinstance(mapping, str) or not isinstance(mapping, Sequence):
        raise InvalidParameter(
            "'mapping' must be one list, the number of the student's class or None for each of the "
            f"teacher's outputs, or one such list per teacher by name. Got {mapping!r}."
        )
    known = [c for c in mapping if c is not None]
    if len(known) < len(mapping):
        module = Restricted(module, mapping)
    return adapted(module, classes=known, common=classes)


class Restricted(nn.Module):
    """A classifier that answers for some of its classes only, renormalised.

    Args:
        module: The classifier.
        mapping: One entry per output; those that are None are left out.

    Example:
        >>> Restricted(nn.Identity(), [0, None])(torch.tensor([[0.0, 5.0]])).exp()
        tensor([[1.]])
    """

    place: Tensor

    def __init__(self, module: nn.Module, mapping: ClassMap) -> None:
        super().__init__()
        self.module, self.outputs = module, len(mapping)
        kept = [place for place, number in enumerate(mapping) if number is not None]
        if not kept:
            raise InvalidParameter("The mapping leaves the teacher without classes.")
        self.register_buffer("place", torch.tensor(kept))
        self._kind: Kind | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Log-probabilities among the classes that are kept."""
        outputs = output_tensor(self.module(*args, **kwargs))
        task: Task = "tokens" if outputs.ndim == 3 else "classification"
        if self._kind is None:
            self._kind = detect_kind(outputs, task)
        logs = member_stack([outputs], [self._kind], task)[0]
        if logs.shape[-1] != self.outputs:
            raise DataError(
                f"The mapping has {self.outputs} entries, and the teacher {logs.shape[-1]} classes."
            )
        return logs.index_select(-1, self.place).log_softmax(-1)
