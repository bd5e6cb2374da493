"""TIES: task vectors trimmed to their largest elements, which then elect a sign."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_choice, require_number
from alloykit.merging.task_vectors import elected_sum, moved, task_vectors
from alloykit.merging.trimming import Bands, Trimming
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    per_member=frozenset({"density"}),
    paper="Yadav et al., TIES-Merging, 2023, arXiv:2306.01708.",
)
def ties(
    density: float | list[float] | None = None,
    scale: float = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    scope: Literal["tensor", "model"] = "tensor",
    compat: str | None = None,
) -> Passes:
    """Trim each task vector to its largest elements, elect a sign, average those that agree.

    τᵢ = δᵢ where |δᵢ| is among the largest ``density`` of its elements, 0 elsewhere
    γ = sign(Σ wᵢ·τᵢ), for each element
    merged = base + scale · Σ wᵢ·τᵢ / Σ |wᵢ|, both sums over the members with sign(wᵢ·τᵢ) = γ

    Use it when fine-tunes of one base for different tasks get in each other's way: most of a task
    vector is redundant, and members that disagree in sign cancel each other in a plain sum.

    Args:
        density: Fraction of each task vector kept, in [0, 1], one number or one per member. The
            default is the authors' 0.2, and 1, mergekit's, with ``compat="mergekit"``.
        scale: Length of the step, any finite number (mergekit's lambda). The default 1 is the
            authors' choice without validation data.
        normalize: Whether the members that agree are averaged, as in the paper, or summed.
        rescale: Whether to multiply each trimmed task vector by what gives it back its L1 norm.
            Not in the paper; the default is off.
        scope: Whether the largest elements are sought in each tensor, or in the whole model at
            once as the authors do, which leaves some tensors hardly any. The default "tensor" is
            what most software does.
        compat: "mergekit" keeps int(density·n) elements instead of the nearest whole number, lets
            elements in which the votes balance count as positive, and divides by the sum of the
            weights, signs included.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. One or more members. Weights are factors, 1 by default; a negative one votes and
        moves against its task vector.

    Raises:
        InvalidParameter: A parameter out of its range, or densities for another number of members.

    Example:
        >>> import torch
        >>> members = (torch.tensor([3.0, 1.0, -2.0]), torch.tensor([1.0, 0.5, 4.0]))
        >>> group = TensorGroup("w", ("a", "b"), members, (1.0, 1.0), base=torch.zeros(3))
        >>> ties(density=1.0).merge(group, None)
        tensor([2.0000, 0.7500, 4.0000])

    References:
        Yadav et al., TIES-Merging: Resolving interference when merging models, 2023,
        arXiv:2306.01708, algorithm 1. Elements of the very magnitude of the last one kept are
        kept too, as in the authors' code; mergekit keeps some of them, as its sort happens to
        order them. Where the votes balance exactly nothing is added, which is what the paper's
        equations say; the authors' code takes the sign of most elements of the model there, and
        mergekit the positive one. Members have weights, as in mergekit; the paper has none.
    """
    share = (1.0 if compat else 0.2) if density is None else density
    trimming = Trimming("ties", share, rescale=rescale, compat=compat)
    require_number("ties", "scale", scale)
    require_choice("ties", "scope", scope, ("tensor", "model"))

    def merge(group: TensorGroup, bands: Bands | None) -> Tensor:
        base = base_of("ties", group)
        vectors = task_vectors(group, trimming.sparsify(bands))
        total = elected_sum(vectors, base, normalize=normalize, compat=compat)
        return moved(base, total, scale)

    return Passes(merge, trimming.survey, scope=scope)
