"""Names of tensors: the prefixes that wrappers add, and the rules that go by name."""

from __future__ import annotations

from collections.abc import Iterable

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


def wrapper_prefix(names: Iterable[str]) -> str:
    """The wrapper prefixes, in order, that *every* name carries; "" where there is none.

    Example:
        >>> wrapper_prefix(["_orig_mod.module.w", "_orig_mod.module.b"])
        '_orig_mod.module.'
    """
    every = list(names)
    found = ""
    while every:
        step = next(
            (p for p in WRAPPER_PREFIXES if all(n.startswith(found + p) for n in every)), None
        )
        if step is None:
            return found
        found += step
    return found


def takes_maximum(name: str) -> bool:
    """Whether unequal integer buffers of this name resolve to their maximum (BatchNorm's count)."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def is_statistic(name: str) -> bool:
    """Whether a tensor of this name is a running statistic of BatchNorm, which is not trained."""
    return name.rpartition(".")[2] in ("running_mean", "running_var")
