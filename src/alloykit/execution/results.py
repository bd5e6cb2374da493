"""Hand a merged state dict back in the form in which the models came."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alloykit.checkpoints.loading import load_state
from alloykit.errors import InvalidParameter
from alloykit.names import wrapper_prefix


def in_form_of(model: Any, merged: Mapping[str, Tensor]) -> Any:
    """A module for a module, arrays for arrays, a list for a list; for files a state dict.

    Args:
        model: The first of the models that were merged. It is not changed.
        merged: Its tensors' names -> merged tensors; their dtypes are kept, a module's too.

    Raises:
        InvalidParameter: A dtype that NumPy lacks, for a model of NumPy arrays.
    """
    if isinstance(model, nn.Module):
        module = copy.deepcopy(model)
        named = _named_as(module.state_dict(), merged)
        _take_dtypes(module, named)
        load_state(module, named)
        return module
    if isinstance(model, Mapping):
        named = _named_as(model, merged)
        return {name: _like(model[name], tensor) for name, tensor in named.items()}
    if isinstance(model, Sequence) and not isinstance(model, str):
        return [_like(value, merged[str(index)]) for index, value in enumerate(model)]
    return dict(merged)


def _take_dtypes(module: nn.Module, merged: Mapping[str, Tensor]) -> None:
    """Give the module's tensors the merged dtypes, as ``module.to(dtype)`` would for all."""
    every = itertools.chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in every:
        if name in merged and tensor.dtype != merged[name].dtype:
            tensor.data = tensor.data.to(merged[name].dtype)


def _like(original: Any, tensor: Tensor) -> Any:
    """The tensor, or an array of it where the original is one."""
    if not isinstance(original, np.ndarray | np.generic):
        return tensor
    if tensor.dtype == torch.bfloat16 and original.dtype.name == "bfloat16":
        return tensor.view(torch.uint16).numpy().view(original.dtype)
    try:
        return tensor.numpy()
    except TypeError:
        raise InvalidParameter(
            f"NumPy has no {tensor.dtype}, and the models are NumPy arrays. Give another dtype, "
            "or tensors."
        ) from None


def _named_as(original: Mapping[str, Any], merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The merged tensors under the original's names, a wrapper's prefix put back."""
    kinds = (Tensor, np.ndarray, np.generic)
    names = [name for name in original if isinstance(original[name], kinds)]
    prefix = "" if all(name in merged for name in names) else wrapper_prefix(names)
    return {name: merged[name.removeprefix(prefix)] for name in names}
