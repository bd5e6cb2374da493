"""Model breadcrumbs with TIES: task vectors without outliers, which then elect a sign."""

from __future__ import annotations

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.merging.task_vectors import elected_sum, moved, task_vectors
from alloykit.merging.trimming import Bands, Trimming
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    per_member=frozenset({"density", "gamma"}),
    paper="Davari and Belilovsky, Model breadcrumbs, 2023, arXiv:2312.06795.",
)
def breadcrumbs_ties(
    density: float | list[float] | None = None,
    gamma: float | list[float] = 0.01,
    scale: float = 1.0,
    normalize: bool | None = None,
    rescale: bool = False,
    compat: str | None = None,
) -> Passes:
    """Drop the largest and the smallest elements of each task vector, then elect a sign.

    τᵢ = δᵢ where the rank of |δᵢ| within the tensor is beyond the gamma largest and within the
    density after them, 0 elsewhere
    γ = sign(Σ wᵢ·τᵢ), for each element
    merged = base + scale · Σ wᵢ·τᵢ / Σ |wᵢ|, both sums over the members with sign(wᵢ·τᵢ) = γ

    Use it as ``ties`` where a few outliers would decide the vote.

    Args:
        density: Fraction of each task vector kept, in [0, 1], one number or one per member. The
            default is 0.15, where the authors' search begins, and 1, mergekit's, with
            ``compat="mergekit"``.
        gamma: Fraction of each task vector, of its largest elements, that is left out, in [0, 1],
            one number or one per member; less where density and gamma are more than 1 together.
            The default 0.01 is mergekit's; the authors search 0.001 to 0.01.
        scale: Length of the step, any finite number (mergekit's lambda). Default 1.
        normalize: Whether the members that agree are averaged, as in TIES, or summed. By default
            they are averaged, and with ``compat="mergekit"`` summed, as there.
        rescale: Whether to multiply each task vector by what gives it back its L1 norm. The
            default is off.
        compat: "mergekit" rounds the numbers of elements down, to zero even, lets elements in
            which the votes balance count as positive, and divides by the sum of the weights,
            signs included.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. One or more members. Weights are factors, 1 by default; a negative one votes and
        moves against its task vector.

    Raises:
        InvalidParameter: A parameter out of its range, or lists for another number of members.

    Example:
        >>> import torch
        >>> members = (torch.tensor([9.0, 1.0, 0.1, 0.0]), torch.tensor([-2.0, 3.0, -1.0, 0.0]))
        >>> group = TensorGroup("w", ("a", "b"), members, (1.0, 1.0), base=torch.zeros(4))
        >>> from alloykit.execution.scanning import merge_whole
        >>> merge_whole(breadcrumbs_ties(density=0.5, gamma=0.25), group)
        tensor([-2.,  1., -1.,  0.])

    References:
        Davari and Belilovsky, Model breadcrumbs: Scaling multi-task model merging with sparse
        masks, 2023, arXiv:2312.06795, section 3, for what is kept; Yadav et al., TIES-Merging,
        2023, arXiv:2306.01708, algorithm 1, for the vote: neither paper has both, mergekit does.
        It sums instead of averaging. For ranks and balanced votes see ``breadcrumbs``, ``ties``.
    """
    share = (1.0 if compat else 0.15) if density is None else density
    least = 0 if compat else 1
    trimming = Trimming("breadcrumbs_ties", share, gamma, rescale, compat, least)
    require_number("breadcrumbs_ties", "scale", scale)
    averaged = not compat if normalize is None else normalize

    def merge(group: TensorGroup, bands: Bands | None) -> Tensor:
        base = base_of("breadcrumbs_ties", group)
        vectors = task_vectors(group, trimming.sparsify(bands))
        total = elected_sum(vectors, base, normalize=averaged, compat=compat)
        return moved(base, total, scale)

    return Passes(merge, trimming.survey)
