"""From what each member returned to one stack of log-probabilities or values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from alloykit.data.splits import IGNORED
from alloykit.errors import DataError, listing
from alloykit.evaluation.predicting import LOWEST, SMALLEST
from alloykit.types import Kind, Task

BLOCK = 1 << 21
"""Float64 numbers held at a time where the whole stack is passed over."""


def member_stack(
    outputs: Sequence[Tensor],
    kinds: Sequence[Kind],
    task: Task,
    *,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Stack the members' outputs in the form that every rule takes.

    Logits become log_softmax(logits), probabilities their logarithm, values stay; a single output
    per example becomes two classes. Everything is finite (zero becomes 1.2e-38). A member that
    already ends in a softmax must be of kind "probabilities": a second softmax would flatten it
    (a certainty of 1 among 10 classes would read as 0.23).

    Args:
        outputs: One tensor per member, ``[example, class]``, ``[example, position, class]`` or
            ``[example, *output]``.
        kinds: What each member's output is.
        task: What they were trained for.
        names: The members' names, for error messages.

    Shapes:
        outputs member x [example, *output] -> [member, example, *output], float32 (float64 where
        every member is)

    Raises:
        DataError: No members, or outputs of different shapes.

    Example:
        >>> member_stack([torch.zeros(1, 2), torch.zeros(1, 2)], ["logits"] * 2, "classification")
        tensor([[[-0.6931, -0.6931]],
        <BLANKLINE>
                [[-0.6931, -0.6931]]])
    """
    wide = all(output.dtype == torch.float64 for output in outputs)
    dtype = torch.float64 if wide else torch.float32
    if task == "regression":
        flat = {output.ndim for output in outputs} == {1, 2}
        rows = [o.to(dtype).unsqueeze(1) if flat and o.ndim == 1 else o.to(dtype) for o in outputs]
    else:
        pairs = zip(outputs, kinds, strict=True)
        rows = [_log_probabilities(output, kind, dtype) for output, kind in pairs]
    _require_one_shape(rows, names or [str(place) for place in range(len(outputs))])
    return torch.stack(rows)


def _log_probabilities(output: Tensor, kind: Kind, dtype: torch.dtype) -> Tensor:
    # The same numbers as evaluation's log_probabilities, kept on the device and exportable.
    output = output.to(dtype)
    if output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1):
        single = output.reshape(-1, 1)
        other = torch.zeros_like(single) if kind == "logits" else 1 - single
        output = torch.cat([other, single], dim=1)
    if kind == "logits":
        return output.log_softmax(-1).clamp_min(LOWEST)
    if kind == "probabilities":
        return (output / output.sum(-1, keepdim=True)).clamp_min(SMALLEST).log()
    raise DataError(
        "A member returns values where classes are needed. "
        "Give its kind as 'logits' or 'probabilities', or ask for task='regression'."
    )


def _require_one_shape(outputs: Sequence[Tensor], names: Sequence[str]) -> None:
    if not outputs:
        raise DataError("There are no members' outputs to combine.")
    shapes = [tuple(output.shape) for output in outputs]
    if any(shape != shapes[0] for shape in shapes):
        lines = [f"{name}: {list(shape)}" for name, shape in zip(names, shapes, strict=True)]
        raise DataError(
            f"The members' outputs differ in shape:\n{listing(lines)}\n"
            "An ensemble needs members with the same classes in the same order; "
            "leave the others out, or give each of them a layer that maps to the same classes."
        )


def fitting_rows(stack: Tensor, targets: Tensor, *, classes: bool) -> tuple[Tensor, Tensor]:
    """The rows that a rule is fitted on: leading dimensions flattened, ignored targets left out.

    Args:
        stack: ``[member, example, *output]``.
        targets: ``[example]``, ``[example, position]`` with -100 where it does not count, or
            values ``[example, *output]``.
        classes: Whether the last dimension of the stack holds log-probabilities of classes.

    Shapes:
        stack [member, example, position, class] -> [member, row, class]; values keep their shape

    Raises:
        DataError: Shapes that do not fit, no rows, labels out of range, or NaN or infinite numbers.
    """
    stack = stack if stack.dtype == torch.float64 else stack.float()
    if classes:
        stack, targets = _class_rows(stack, targets)
    else:
        targets = _value_rows(stack, targets).to(stack.dtype)
    if targets.numel() == 0:
        raise DataError("There are no examples to fit on. Give a validation split with targets.")
    unusable = [
        f"member {place + 1}: {int((~torch.isfinite(rows)).sum())} NaN or infinite outputs"
        for place, rows in enumerate(stack)
        if not bool(torch.isfinite(rows).all())
    ]
    if unusable:
        raise DataError(
            f"Outputs that cannot be fitted on:\n{listing(unusable)}\nLeave these members out."
        )
    return stack, targets


def true_class(stack: Tensor, targets: Tensor) -> Tensor:
    """What each member gave to the true class: [member, example, class] -> [member, example]."""
    return stack.gather(2, targets.expand(len(stack), -1)[..., None])[..., 0]


def blocks(stack: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples in blocks that fit in memory, in float64 on the CPU, with their targets."""
    rows = max(1, BLOCK // (stack.shape[0] * stack.shape[2]))
    for start in range(0, len(targets), rows):
        yield stack[:, start : start + rows].double().cpu(), targets[start : start + rows].cpu()


def _class_rows(stack: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if stack.shape[1:-1] != targets.shape:
        raise DataError(
            f"Targets {list(targets.shape)} do not fit members' outputs {list(stack.shape[1:])}: "
            "one label per row of classes is needed."
        )
    targets = targets.flatten().long()
    # A log-probability of -inf is a legitimate "never", and would turn 0 · -inf into NaN.
    rows = stack.flatten(1, -2).clamp_min(LOWEST)
    counted = targets != IGNORED
    if not bool(counted.all()):
        rows, targets = rows[:, counted], targets[counted]
    outside = sorted({int(label) for label in targets[(targets < 0) | (targets >= rows.shape[-1])]})
    if outside:
        raise DataError(
            f"Labels outside 0 to {rows.shape[-1] - 1}:\n{listing(map(str, outside))}\n"
            "The members know fewer classes than the targets name."
        )
    return rows, targets


def _value_rows(stack: Tensor, targets: Tensor) -> Tensor:
    if stack[0].shape == targets.shape:
        return targets
    if stack[0].numel() == targets.numel() and stack.shape[1] == targets.shape[0]:
        return targets.reshape(stack.shape[1:])
    raise DataError(
        f"Targets {list(targets.shape)} do not fit members' outputs {list(stack.shape[1:])}."
    )
