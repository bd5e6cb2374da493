"""Iso-C: the sum of the task vectors with all its singular values made equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.matrices import EMBEDDINGS, on_matrices, singular, summed


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    paper="Marczak et al., No Task Left Behind, 2025, arXiv:2502.04959.",
)
def iso_c(scale: float = 1.0, exclude: str = EMBEDDINGS) -> Passes:
    """Make the summed task vector isotropic: all its singular values become their mean.

    With Σ w·δ = U·S·Vᵀ: merged = base + scale · mean(S) · U·Vᵀ.
    Vectors and scalars: base + scale · mean of w·δ.

    Use it when members were fine-tuned from one base on different tasks and validation data can
    choose the scale (``alloykit.tune``): the best one can lie well above 1, and untuned the method
    can lose to plain averaging (benchmarks/multitask_merging.py).

    Args:
        scale: Length of the step along the combined task vector, finite. The default 1 is the
            formula without a factor; the authors tune it.
        exclude: Globs of names, with commas between them, of matrices that are averaged instead.
            The default leaves out embeddings.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]; convolutions are seen as
        [out, in · height · width]

    Needs:
        base. Weights multiply the task vectors; 1 by default.

    Raises:
        InvalidParameter: A scale that is not finite, or an exclude that is not text.

    Example:
        >>> import torch
        >>> from alloykit.types import TensorGroup
        >>> one, two = torch.diag(torch.tensor([3.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
        >>> group = TensorGroup("w", ("a", "b"), (one, two), (1.0, 1.0), base=torch.zeros(2, 2))
        >>> iso_c().merge(group, None).diag().round().tolist()
        [2.0, 2.0]

    References:
        Marczak, Magistri, Cygert, Twardowski, Bagdanov, van de Weijer: No Task Left Behind:
        Isotropic Model Merging with Common and Task-Specific Subspaces, 2025, arXiv:2502.04959
        (Iso-C). Differs from the authors' code in three places: convolutions are matrices,
        too (there they are averaged); directions whose singular value is rounding noise stay at
        zero instead of being raised to the mean; embeddings are left out by name.
    """

    def combine(deltas: Sequence[Tensor], stored: torch.dtype) -> Tensor:
        u, s, vt = singular(summed(deltas), stored)
        return s.mean() * (u @ vt)

    return on_matrices("iso_c", combine, scale, exclude)
