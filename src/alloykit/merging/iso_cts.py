"""Iso-CTS: common and task-specific directions, all of the same strength."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.matrices import EMBEDDINGS, nearest_orthogonal, on_matrices, singular, summed
from alloykit.merging.ranges import require_number


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    paper="Marczak et al., No Task Left Behind, 2025, arXiv:2502.04959.",
)
def iso_cts(scale: float = 1.0, common: float = 0.8, exclude: str = EMBEDDINGS) -> Passes:
    """Keep the strongest common directions, fill up with each task's own, and make all equal.

    With Σ w·δ = U·S·Vᵀ: the first ``common`` of its directions are kept; the others give way to
    the strongest directions of (I − U·Uᵀ) · w·δ, as many for every member; with U, S and V now
    those of all of them: merged = base + scale · mean(S) · orth(U) · orth(V)ᵀ, where orth is the
    nearest orthogonal matrix. Vectors and scalars: base + scale · mean of w·δ.

    Use it in place of ``iso_c`` when there are many members whose tasks have little in common, with
    a scale chosen on validation data (``alloykit.tune``).

    Args:
        scale: Length of the step along the combined task vector, finite. The default 1 is the
            formula without a factor; the authors tune it.
        common: Fraction of the directions that is kept from the sum, in [0, 1]; the default 0.8
            is the authors'. The rest is shared out evenly, rounded to whole directions.
        exclude: Globs of names, with commas between them, of matrices that are averaged instead.
            The default leaves out embeddings.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]; convolutions are seen as
        [out, in · height · width]

    Needs:
        base. Weights multiply the task vectors; 1 by default.

    Raises:
        InvalidParameter: A scale that is not finite, or a fraction outside [0, 1].

    Example:
        >>> import torch
        >>> from alloykit.types import TensorGroup
        >>> one, two = torch.diag(torch.tensor([3.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
        >>> group = TensorGroup("w", ("a", "b"), (one, two), (1.0, 1.0), base=torch.zeros(2, 2))
        >>> iso_cts().merge(group, None).diag().round().tolist()
        [2.0, 2.0]

    References:
        Marczak, Magistri, Cygert, Twardowski, Bagdanov, van de Weijer: No Task Left Behind:
        Isotropic Model Merging with Common and Task-Specific Subspaces, 2025, arXiv:2502.04959
        (Iso-CTS). Differs from the authors' code as ``iso_c`` does, and where the rounding
        there asks for more directions than there are.
    """
    require_number(
        "iso_cts", "common", common, low=0.0, high=1.0, hint="It is a fraction: 80 % is 0.8."
    )

    def combine(deltas: Sequence[Tensor], stored: torch.dtype) -> Tensor:
        members, directions = len(deltas), min(deltas[0].shape)
        own = min(round((directions - int(directions * common)) / members), directions // members)
        shared = singular(summed(deltas), stored, directions - members * own)
        parts = [shared]
        if own:
            parts += [singular(d - shared[0] @ (shared[0].T @ d), stored, own) for d in deltas]
        u = nearest_orthogonal(torch.cat([u for u, _, _ in parts], dim=1), stored)
        vt = nearest_orthogonal(torch.cat([vt for _, _, vt in parts]), stored)
        return torch.cat([s for _, s, _ in parts]).mean() * (u @ vt)

    return on_matrices("iso_cts", combine, scale, exclude)
