"""DELLA: task vectors dropped at random, small elements rather than large ones, then summed."""

from __future__ import annotations

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.dropping import Dropping, Gains
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.merging.task_vectors import moved, task_vectors, weighted_sum
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    per_member=frozenset({"density", "epsilon"}),
    paper="Deep et al., DELLA-Merging, 2024, arXiv:2406.11617.",
)
def della_linear(
    density: float | list[float] | None = None,
    epsilon: float | list[float] = 0.15,
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    compat: str | None = None,
) -> Passes:
    """Keep large elements of the task vectors rather than small ones, at random, and add them up.

    pᵢ = density − epsilon + 2 · epsilon · rank / (n − 1), rank 0 … n−1 by magnitude in its row
    merged = base + scale · Σ wᵢ · mᵢ ∘ δᵢ / pᵢ, where mᵢ is 1 with probability pᵢ

    Use it as ``dare_linear`` where small elements matter less than large ones.

    Args:
        density: Mean probability with which an element is kept, in [0, 1], one number or one per
            member. The default is 0.5, and 1, mergekit's, with ``compat="mergekit"``; the paper
            tunes it for each merge.
        epsilon: How much more likely the largest element of a row is kept than the mean one, and
            how much less the smallest, one number or one per member; density ± epsilon must lie
            between 0 and 1. The default 0.15 is mergekit's; the authors' is 0.05.
        scale: Length of the step, any finite number (mergekit's lambda). Default 1.
        normalize: Whether to divide by the sum of the weights. The default is off.
        rescale: Whether to divide what is kept by its probability, so that its expectation is the
            task vector. The default is on, as in the paper.
        compat: "mergekit" rescales to the L1 norm that the whole tensor's task vector had, and
            ranks along the second dimension of tensors that have more than two.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]; a row is a slice of the first
        dimension, a vector is one row.

    Needs:
        base. One or more members. Weights are factors, 1 by default. What is kept depends on the
        merge's seed, the tensor's name, the member's id and the position of the element alone.

    Raises:
        InvalidParameter: A parameter out of its range, or lists for another number of members.

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("a",), (torch.arange(8.0),), (1.0,), base=torch.zeros(8))
        >>> della_linear(density=0.5, epsilon=0.4).merge(group, None)
        tensor([0.0000, 0.0000, 0.0000, 6.7742, 0.0000, 0.0000, 7.6364, 7.7778])

    References:
        Deep et al., DELLA-Merging: Reducing interference in model merging through magnitude-based
        sampling, 2024, arXiv:2406.11617, section 3, MAGPRUNE; probabilities as in the authors'
        code, where the paper's window is 2 · epsilon. mergekit matches L1 norms instead of
        dividing by the probability, so that large elements end up too large and small ones too
        small; it ranks in the stored precision, and fails for rows of one element.
    """
    share = (1.0 if compat else 0.5) if density is None else density
    dropping = Dropping("della_linear", share, rescale, compat, epsilon)
    require_number("della_linear", "scale", scale)

    def merge(group: TensorGroup, gains: Gains | None) -> Tensor:
        base = base_of("della_linear", group)
        vectors = task_vectors(group, dropping.sparsify(gains))
        return moved(base, weighted_sum(vectors, base, normalize=normalize), scale)

    return Passes(merge, dropping.survey, unit="row")
