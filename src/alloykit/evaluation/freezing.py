"""A model that is only to be used: its own flags, the tensors of the caller's module."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def frozen_view(module: nn.Module) -> nn.Module:
    """A copy of the module that shares its tensors, in eval mode, with nothing to train.

    Combining freezes its members; the caller's module keeps its flags and can be trained on.
    """
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()
    }
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, shared).eval()
