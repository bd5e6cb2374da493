"""DARE with TIES: task vectors dropped at random and rescaled, which then elect a sign."""

from __future__ import annotations

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.dropping import Dropping, Gains
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.merging.task_vectors import elected_sum, moved, task_vectors
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    per_member=frozenset({"density"}),
    paper="Yu et al., Language models are super Mario, 2023, arXiv:2311.03099.",
)
def dare_ties(
    density: float | list[float] | None = None,
    scale: float = 1.0,
    normalize: bool | None = None,
    rescale: bool = True,
    compat: str | None = None,
) -> Passes:
    """Keep each element of the task vectors with some probability, rescale, then elect a sign.

    τᵢ = mᵢ ∘ δᵢ / densityᵢ, where mᵢ is 1 with probability densityᵢ
    γ = sign(Σ wᵢ·τᵢ), for each element
    merged = base + scale · Σ wᵢ·τᵢ / Σ |wᵢ|, both sums over the members with sign(wᵢ·τᵢ) = γ

    Use it as ``ties`` where members disagree in sign: elements are dropped whatever their size,
    and those kept are rescaled, so that little is lost as long as they are small.

    Args:
        density: Probability with which an element is kept, in [0, 1], one number or one per
            member. The default is 0.1, the paper's drop rate of 0.9, and 1, mergekit's, with
            ``compat="mergekit"``.
        scale: Length of the step, any finite number (mergekit's lambda). Default 1.
        normalize: Whether the members that agree are averaged, as in TIES, or summed. By default
            they are averaged, and with ``compat="mergekit"`` summed, as there.
        rescale: Whether to divide what is kept by the density, so that its expectation is the
            task vector. The default is on; the paper shows what is lost without.
        compat: "mergekit" rescales to the L1 norm that the whole tensor's task vector had, lets
            elements in which the votes balance count as positive, and divides by the sum of the
            weights, signs included.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. One or more members. Weights are factors, 1 by default. What is kept depends on the
        merge's seed, the tensor's name, the member's id and the position of the element alone.

    Raises:
        InvalidParameter: A parameter out of its range, or densities for another number of members.

    Example:
        >>> import torch
        >>> members = (torch.ones(8), -0.1 * torch.ones(8))
        >>> group = TensorGroup("w", ("a", "b"), members, (1.0, 1.0), base=torch.zeros(8))
        >>> dare_ties(density=0.5).merge(group, None)
        tensor([ 2.0000,  2.0000,  0.0000,  2.0000,  0.0000, -0.2000,  2.0000,  0.0000])

    References:
        Yu et al., Language models are super Mario: Absorbing abilities from homologous models as
        a free lunch, 2023, arXiv:2311.03099, section 3; Yadav et al., TIES-Merging, 2023,
        arXiv:2306.01708, algorithm 1, without its trimming. mergekit sums instead of averaging,
        and matches L1 norms instead of dividing by the density, which for small tensors
        multiplies by something else every time. For balanced votes see ``ties``.
    """
    share = (1.0 if compat else 0.1) if density is None else density
    dropping = Dropping("dare_ties", share, rescale, compat)
    require_number("dare_ties", "scale", scale)

    averaged = not compat if normalize is None else normalize

    def merge(group: TensorGroup, gains: Gains | None) -> Tensor:
        base = base_of("dare_ties", group)
        vectors = task_vectors(group, dropping.sparsify(gains))
        total = elected_sum(vectors, base, normalize=averaged, compat=compat)
        return moved(base, total, scale)

    return Passes(merge, dropping.survey)
