"""Groups of matrices for the tests of methods that see a weight as a linear map."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.execution.scanning import merge_whole
from alloykit.types import MergeMethod, TensorGroup


def random_group(
    *shape: int, members: int = 3, dtype=torch.float32, seed: int = 0, name: str = "layer.weight"
) -> TensorGroup:
    """Members at a distance of about a tenth of their base."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=dtype)
    return TensorGroup(
        name,
        tuple("abcdefgh"[:members]),
        tuple(
            base + 0.1 * torch.randn(shape, generator=generator, dtype=dtype)
            for _ in range(members)
        ),
        (1.0,) * members,
        base=base,
    )


def task_vectors(group: TensorGroup) -> list[Tensor]:
    assert group.base is not None
    return [t.double() - group.base.double() for t in group.tensors]


def step(method: MergeMethod, group: TensorGroup) -> Tensor:
    """What the method adds to the base."""
    assert group.base is not None
    return merge_whole(method, group).double() - group.base.double()
