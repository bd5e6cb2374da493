"""Hand a merged state dict back in the form in which the models came."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from alloykit.checkpoints.loading import load_state


def in_form_of(model: Any, merged: Mapping[str, Tensor]) -> Any:
    """A module for a module, arrays for arrays, a list for a list; for files a state dict.

    Args:
        model: The first of the models that were merged.
        merged: Its tensors' names -> merged tensors.
    """
    if isinstance(model, nn.Module):
        module = copy.deepcopy(model)
        load_state(module, _with_prefix(module, merged))
        return module
    if isinstance(model, Mapping):
        numpy = [name for name, value in model.items() if isinstance(value, np.ndarray)]
        return {n: t.numpy() if n in set(numpy) else t for n, t in _named_as(model, merged).items()}
    if isinstance(model, Sequence) and not isinstance(model, str):
        every = [merged[str(index)] for index in range(len(model))]
        return [
            tensor.numpy() if isinstance(value, np.ndarray | np.generic) else tensor
            for tensor, value in zip(every, model, strict=True)
        ]
    return dict(merged)


def _with_prefix(module: nn.Module, merged: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return _named_as(module.state_dict(), merged)


def _named_as(original: Mapping[str, Any], merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The merged tensors under the original's names, a wrapper's prefix put back."""
    if all(name in merged for name in original):
        return {name: merged[name] for name in original}
    shortest = min(original, key=len)
    prefix = shortest[: next(i for i in range(len(shortest)) if shortest[i:] in merged)]
    return {prefix + name: tensor for name, tensor in merged.items()}
