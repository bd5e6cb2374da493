"""TSV-M: the strongest singular directions of every task vector, decorrelated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.matrices import EMBEDDINGS, nearest_orthogonal, on_matrices, singular


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    paper="Gargiulo et al., Task Singular Vectors, 2024, arXiv:2412.00081.",
)
def tsv_m(scale: float = 1.0, exclude: str = EMBEDDINGS) -> Passes:
    """Keep the strongest singular directions of every task vector, made orthogonal between tasks.

    With w·δ = U·S·Vᵀ for every one of T members, of which the first k = ⌊min(out, in) / T⌋
    directions are kept and set side by side:
    merged = base + scale · orth(U) · S · orth(V)ᵀ, where orth is the nearest orthogonal matrix.
    Vectors and scalars: base + scale · mean of w·δ.

    Use it when members were fine-tuned from one base on different tasks and no data is at hand:
    of the methods without data it does best untuned (benchmarks/multitask_merging.py).

    Args:
        scale: Length of the step along the combined task vector, finite. The default 1 is the
            authors'.
        exclude: Globs of names, with commas between them, of matrices that are averaged instead.
            The default leaves out embeddings, whose rows are looked up one by one; stacks of
            expert matrices in one tensor should be named, too.

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
        >>> one, two = torch.diag(torch.tensor([3.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))
        >>> group = TensorGroup("w", ("a", "b"), (one, two), (1.0, 1.0), base=torch.zeros(2, 2))
        >>> tsv_m().merge(group, None).diag().round().tolist()
        [3.0, 2.0]

    References:
        Gargiulo, Crisostomi, Bucarelli, Scardapane, Silvestri, Rodolà: Task Singular Vectors:
        Reducing Task Interference in Model Merging, 2024, arXiv:2412.00081 (TSV-Merge). Differs
        from the authors' code in four places: convolutions are matrices, too (there they are
        averaged); at least one direction of every member is kept, where there k is 0 for matrices
        with fewer rows than members; directions that several members share to the rounding error
        count once, and where a task vector has no further directions none are made up; embeddings
        are left out by name.
    """

    def combine(deltas: Sequence[Tensor], stored: torch.dtype) -> Tensor:
        rank = max(1, min(deltas[0].shape) // len(deltas))
        parts = [singular(delta, stored, rank) for delta in deltas]
        u = nearest_orthogonal(torch.cat([u for u, _, _ in parts], dim=1), stored)
        vt = nearest_orthogonal(torch.cat([vt for _, _, vt in parts]), stored)
        return (u * torch.cat([s for _, s, _ in parts])) @ vt

    return on_matrices("tsv_m", combine, scale, exclude)
