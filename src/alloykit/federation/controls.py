"""Control variates on the server: the mean of the clients' changes, as SCAFFOLD keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.federation.structure import Structure

SLOT = "control"


def misfit_of_control(control: Mapping[str, Tensor], structure: Structure) -> str:
    """Why a client's change of its control variate cannot be used; "" where it can.

    It may leave out tensors (statistics have no gradient), but not add any.
    """
    for name, change in control.items():
        if name not in structure.averaged:
            return f"its control variate has {shown(name)}, which is not averaged"
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
        given = [change[name].double() for change in changes if name in change]
        total = torch.stack(given).sum(0) * (factor / len(changes))
        summed = found[name].double() + total if name in found else total
        wide = any(change[name].dtype == torch.float64 for change in changes if name in change)
        found[name] = summed.to(torch.float64 if wide else torch.float32)
    return found
