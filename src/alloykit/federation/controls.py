"""Control variates on the server: the mean of the clients' changes, as SCAFFOLD keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.federation.structure import Structure
from alloykit.numerics import compute_dtype, promoted

SLOT = "control"


def misfit_of_control(control: Mapping[str, Tensor], structure: Structure) -> str:
    """Why a client's change of its control variate cannot be used; "" where it can.

    It may leave out tensors (statistics have no gradient), but not add any.
    """
    for name, change in control.items():
        if name not in structure.averaged:
            return f"its control variate has {shown(name)}, which is not averaged"
        if (
            not isinstance(change, Tensor)
            or change.is_complex() != structure.specs[name].dtype.is_complex
        ):
            return f"its control variate's {shown(name)} is no tensor of numbers like the model's"
        if tuple(change.shape) != structure.specs[name].shape:
            return f"its control variate's {shown(name)} is {list(change.shape)}"
        if not bool(torch.isfinite(change).all()):
            return f"its control variate's {shown(name)} holds NaN or infinite numbers"
    return ""


def moved(
    before: Mapping[str, Tensor], changes: Sequence[Mapping[str, Tensor]], factor: float
) -> dict[str, Tensor]:
    """The server's control variate: before + factor · the clients' mean change, in float32.

    Example:
        >>> moved({}, [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], 0.5)
        {'w': tensor([1.])}
    """
    names = dict.fromkeys(name for change in changes for name in change)
    found = dict(before)
    for name in names:
        given = [change[name] for change in changes if name in change]
        wide = promoted(compute_dtype(tensor.dtype) for tensor in given)
        exact = torch.promote_types(wide, torch.float64)
        total = torch.stack([tensor.to(exact) for tensor in given]).sum(0)
        total *= factor / len(changes)
        found[name] = (found[name].to(exact) + total if name in found else total).to(wide)
    return found
