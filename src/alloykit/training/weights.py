"""What training changes in a model, copied aside and put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def changing(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, and all buffers, by name; tied ones once.

    Buffers that the state dict leaves out are among them: they can change all the same.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return trained | dict(model.named_buffers())


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are not trained, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies where the tensors are; a reference would change with the next step."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def put_back(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into tensors of the same names, in place, so that ties stay."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def has_nan(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a parameter among them holds NaN, as one does after a gradient that was NaN."""
    found = [t.isnan().any() for t in tensors.values() if isinstance(t, nn.Parameter)]
    return bool(torch.stack([each.cpu() for each in found]).any())
