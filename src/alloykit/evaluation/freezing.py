"""A model that is only to be used: its own flags, the tensors of the caller's module."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from alloykit.errors import InvalidParameter, listing


def require_modules(given: Mapping[str, Any], wanted: str = "torch.nn.Module") -> None:
    """Refuse what is no module, and modules whose tensors hold no numbers; all are listed.

    Args:
        given: What should be modules, by name.
        wanted: What may be given, in words.

    Raises:
        InvalidParameter: One of them is something else, or on the meta device.
    """
    wrong = [line for name, module in given.items() if (line := _unfit(module, name, wanted))]
    if wrong:
        raise InvalidParameter(f"These are no models that can be run:\n{listing(wrong)}")


def _unfit(module: Any, name: str, wanted: str) -> str:
    if not isinstance(module, nn.Module):
        if isinstance(module, type):
            return f"{name}: the class {module.__name__}, not an instance of it"
        hint = "; build the module and load the file into it" if _is_path(module) else ""
        return f"{name}: a {type(module).__name__}, not a {wanted}{hint}"
    empty = [n for n, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    if empty:
        return (
            f"{name}: {len(empty)} tensors on the meta device, which hold no numbers "
            f"({empty[0]} first); load its weights"
        )
    return ""


def _is_path(given: Any) -> bool:
    return isinstance(given, str | Path)


def frozen_view(module: nn.Module) -> nn.Module:
    """A copy of the module that shares its tensors, in eval mode, with nothing to train.

    Combining freezes its members; the caller's module keeps its flags and can be trained on.
    """
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()
    }
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, shared).eval()
