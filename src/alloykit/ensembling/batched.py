"""Members of one architecture run as a single call, checked against running them one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.data.outputs import output_tensor

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""How far the batched outputs may be from the loop's; float32 differences measure below 1e-6."""

Forward = Callable[..., Sequence[Tensor]]


def loop_forward(members: Sequence[nn.Module]) -> Forward:
    """Run the members one after the other: ``forward(*inputs, **inputs) -> outputs``."""

    def forward(*args: Any, **kwargs: Any) -> list[Tensor]:
        return [output_tensor(member(*args, **kwargs)) for member in members]

    return forward


def batched_forward(members: Sequence[nn.Module]) -> Forward:
    """Run members of one architecture as a single call over their stacked parameters.

    Use it for small members on small batches on a GPU, where starting kernels takes longer than
    running them. On a CPU the loop measures faster nearly everywhere.

    The first call also runs the loop and compares: members of one class that differ in a plain
    Python attribute (a slope, a flag) would all run with the first one's, silently wrong. Where
    the outputs differ, or the members cannot be stacked, a warning says so and the loop is used.

    The parameters are copied when this is called: build it again after changing a member.

    Args:
        members: In evaluation mode, of one class and with parameters of equal shapes.

    Example:
        >>> run = batched_forward([nn.Linear(3, 2).eval(), nn.Linear(3, 2).eval()])
        >>> [tuple(output.shape) for output in run(torch.zeros(5, 3))]
        [(5, 2), (5, 2)]
    """
    loop = loop_forward(members)
    difference = _difference(members)
    if difference:
        _warn(difference)
        return loop
    stacked = _stacked_forward(members)
    chosen: list[Forward] = []

    def forward(*args: Any, **kwargs: Any) -> Sequence[Tensor]:
        if chosen:
            return chosen[0](*args, **kwargs)
        expected = loop(*args, **kwargs)
        problem = _problem(stacked, expected, args, kwargs)
        if problem:
            _warn(problem)
        chosen.append(loop if problem else stacked)
        return expected

    return forward


def _difference(members: Sequence[nn.Module]) -> str:
    first = _layout(members[0])
    for place, member in enumerate(members[1:], start=2):
        if type(member) is not type(members[0]) or _layout(member) != first:
            return f"member {place} has another class, or other parameters, than the first"
        if member.training != members[0].training:
            return f"member {place} is not in the same mode (training or evaluation) as the first"
    return ""


def _layout(member: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, torch.device]]:
    named = [*member.named_parameters(), *member.named_buffers()]
    return {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in named}


def _stacked_forward(members: Sequence[nn.Module]) -> Forward:
    parameters, buffers = torch.func.stack_module_state(list(members))
    skeleton = members[0]

    def one(parameters: Any, buffers: Any, args: Any, kwargs: Any) -> Tensor:
        outputs = torch.func.functional_call(skeleton, (parameters, buffers), args, kwargs)
        return output_tensor(outputs)

    every = torch.func.vmap(one, in_dims=(0, 0, None, None))

    def forward(*args: Any, **kwargs: Any) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: Tensor = every(parameters, buffers, args, kwargs)
        return outputs.unbind(0)

    return forward


def _problem(stacked: Forward, expected: Sequence[Tensor], args: Any, kwargs: Any) -> str:
    try:
        given = stacked(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"they cannot be run in one call ({_first_line(error)})"
    for place, (one, other) in enumerate(zip(given, expected, strict=True)):
        if not torch.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            worst = float((one - other).abs().max())
            return (
                f"the outputs of member {place + 1} change by up to {worst:.3g}; "
                "it probably differs from the first member in a Python attribute"
            )
    return ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _warn(reason: str) -> None:
    warnings.warn(
        f"The members are run one by one, not batched: {reason}.", UserWarning, stacklevel=3
    )
