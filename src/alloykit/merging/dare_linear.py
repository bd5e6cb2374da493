"""DARE: task vectors dropped at random and rescaled, then summed."""

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
    per_member=frozenset({"density"}),
    paper="Yu et al., Language models are super Mario, 2023, arXiv:2311.03099.",
)
def dare_linear(
    density: float | list[float] | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    compat: str | None = None,
) -> Passes:
    """Keep each element of the task vectors with some probability, rescale, and add them up (DARE).

    merged = base + scale · Σ wᵢ · mᵢ ∘ δᵢ / densityᵢ, where mᵢ is 1 with probability densityᵢ

    Use it when many fine-tunes of one base are added up: a tenth of a task vector, rescaled, does
    what all of it does as long as its elements are small, and thinner ones collide less.

    Args:
        density: Probability with which an element is kept, in [0, 1], one number or one per
            member. The default is 0.1, the paper's drop rate of 0.9, and 1, mergekit's, with
            ``compat="mergekit"``.
        scale: Length of the step, any finite number (mergekit's lambda). Default 1.
        normalize: Whether to divide by the sum of the weights. The default is off, as in the
            paper.
        rescale: Whether to divide what is kept by the density, so that its expectation is the
            task vector. The default is on; the paper shows what is lost without.
        compat: "mergekit" rescales to the L1 norm that the whole tensor's task vector had.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. One or more members. Weights are factors, 1 by default. What is kept depends on the
        merge's seed, the tensor's name, the member's id and the position of the element alone.

    Raises:
        InvalidParameter: A parameter out of its range, or densities for another number of members.

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("a",), (torch.ones(8),), (1.0,), base=torch.zeros(8))
        >>> dare_linear(density=0.5).merge(group, None)
        tensor([2., 2., 0., 2., 0., 0., 2., 0.])

    References:
        Yu et al., Language models are super Mario: Absorbing abilities from homologous models as
        a free lunch, 2023, arXiv:2311.03099, section 3. mergekit matches L1 norms instead of
        dividing by the density, which for small tensors multiplies by something else every time.
    """
    share = (1.0 if compat else 0.1) if density is None else density
    dropping = Dropping("dare_linear", share, rescale, compat)
    require_number("dare_linear", "scale", scale)

    def merge(group: TensorGroup, gains: Gains | None) -> Tensor:
        base = base_of("dare_linear", group)
        vectors = task_vectors(group, dropping.sparsify(gains))
        return moved(base, weighted_sum(vectors, base, normalize=normalize), scale)

    return Passes(merge, dropping.survey)
