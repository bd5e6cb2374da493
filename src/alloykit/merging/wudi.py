"""WUDI: the task vector that disturbs every task's own inputs least, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.matrices import EMBEDDINGS, LEAST_RIDGE, damped_solution, on_matrices
from alloykit.merging.ranges import require_number


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    paper="Cheng et al., Whoever Started the Interference Should End It, 2025, arXiv:2503.08099.",
)
def wudi(scale: float = 1.0, ridge: float = 1e-6, exclude: str = EMBEDDINGS) -> Passes:
    """Find the task vector that disturbs every task's own inputs least (WUDI), in closed form.

    minimise over δ: Σ ‖(δ − δₜ)·δₜᵀ‖² / ‖δₜ‖², which is least squares:
    δ = (Σ δₜ·Hₜ) · (Σ Hₜ)⁻¹ with Hₜ = δₜᵀ·δₜ / ‖δₜ‖²; merged = base + scale · δ.
    Vectors and scalars: base + scale · mean of δₜ.

    Use it when members were fine-tuned from one base on different tasks and no data is at hand:
    a layer's task vector lies in the span of that layer's inputs, and stands for them here. It
    gains from a scale below 1, chosen on validation data (benchmarks/multitask_merging.py).

    Args:
        scale: Length of the step along the combined task vector, finite; the default 1 is the
            authors'.
        ridge: Added to the diagonal of Σ Hₜ, as a fraction of its mean, at least 1e-15. The
            default 1e-6 leaves directions that no member moved in where the base has them.
        exclude: Globs of names, with commas between them, of matrices that are averaged instead.
            The default leaves out embeddings.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]; convolutions are seen as
        [out, in · height · width]

    Needs:
        base. Weights multiply the task vectors; 1 by default.

    Raises:
        InvalidParameter: A scale that is not finite, or a ridge below 1e-15.

    Example:
        >>> import torch
        >>> from alloykit.types import TensorGroup
        >>> one, two = torch.diag(torch.tensor([3.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
        >>> group = TensorGroup("w", ("a", "b"), (one, two), (1.0, 1.0), base=torch.zeros(2, 2))
        >>> wudi().merge(group, None).diag().round().tolist()
        [3.0, 1.0]

    References:
        Cheng, Xiong, Wei, Zhu, Yuan: Whoever Started the Interference Should End It: Guiding
        Data-Free Model Merging via Task Vectors, 2025, arXiv:2503.08099. Differs from the
        authors' code, which takes 300 to 400 steps of Adam with a learning rate of 1e-5
        from the sum of the task vectors and stops short of the minimum: the same objective, solved
        exactly. Convolutions are matrices, too.
    """
    require_number("wudi", "ridge", ridge, low=LEAST_RIDGE)

    def combine(deltas: Sequence[Tensor], stored: torch.dtype) -> Tensor:
        rows, columns = deltas[0].shape
        gram, right = deltas[0].new_zeros(columns, columns), deltas[0].new_zeros(columns, rows)
        for delta in deltas:
            if (norm := float(delta.norm())) > 0.0:
                unit = delta / norm
                gram += unit.T @ unit
                right += unit.T @ (unit @ delta.T)
        damping = ridge * gram.diagonal().mean().expand(columns)
        return damped_solution(gram, right, damping).T

    return on_matrices("wudi", combine, scale, exclude)
