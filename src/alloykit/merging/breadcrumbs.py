"""Model breadcrumbs: task vectors without their smallest elements and their outliers, summed."""

from __future__ import annotations

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.merging.task_vectors import moved, task_vectors, weighted_sum
from alloykit.merging.trimming import Bands, Trimming
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    weights="factors",
    per_member=frozenset({"density", "gamma"}),
    paper="Davari and Belilovsky, Model breadcrumbs, 2023, arXiv:2312.06795.",
)
def breadcrumbs(
    density: float | list[float] | None = None,
    gamma: float | list[float] = 0.01,
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    compat: str | None = None,
) -> Passes:
    """Drop the largest and the smallest elements of each task vector, and add up what is left.

    τᵢ = δᵢ where the rank of |δᵢ| within the tensor is beyond the gamma largest and within the
    density after them, 0 elsewhere
    merged = base + scale · Σ wᵢ·τᵢ

    Use it when many fine-tunes of one base are added up and a few outliers of each do most of the
    harm: the largest elements go, and so do the small ones that only add noise.

    Args:
        density: Fraction of each task vector kept, in [0, 1], one number or one per member. The
            default is 0.15, where the authors' search begins, and 1, mergekit's, with
            ``compat="mergekit"``.
        gamma: Fraction of each task vector, of its largest elements, that is left out, in [0, 1],
            one number or one per member; less where density and gamma are more than 1 together.
            The default 0.01 is mergekit's; the authors search 0.001 to 0.01.
        scale: Length of the step, any finite number (mergekit's lambda). Default 1; the authors
            choose about 0.3 on validation data.
        normalize: Whether to divide by the sum of the weights. The default is off.
        rescale: Whether to multiply each task vector by what gives it back its L1 norm. Not in
            the paper; the default is off.
        compat: "mergekit" rounds the numbers of elements down, to zero even, instead of to the
            nearest whole number but one at least.

    Shapes:
        members [member, *shape], base [*shape] -> [*shape]

    Needs:
        base. One or more members. Weights are factors, 1 by default.

    Raises:
        InvalidParameter: A parameter out of its range, or lists for another number of members.

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("a",), (torch.arange(8.0),), (1.0,), base=torch.zeros(8))
        >>> method = breadcrumbs(density=0.25, gamma=0.125)
        >>> from alloykit.execution.scanning import merge_whole
        >>> merge_whole(method, group)
        tensor([0., 0., 0., 0., 0., 5., 6., 0.])

    References:
        Davari and Belilovsky, Model breadcrumbs: Scaling multi-task model merging with sparse
        masks, 2023, arXiv:2312.06795, section 3. The authors' code ranks within rows, the paper
        and mergekit within tensors, as here. Elements of the very magnitude of an end of the band
        are all kept; mergekit keeps some of them, as its sort happens to order them.
    """
    share = (1.0 if compat else 0.15) if density is None else density
    trimming = Trimming("breadcrumbs", share, gamma, rescale, compat, least=0 if compat else 1)
    require_number("breadcrumbs", "scale", scale)

    def merge(group: TensorGroup, bands: Bands | None) -> Tensor:
        base = base_of("breadcrumbs", group)
        vectors = task_vectors(group, trimming.sparsify(bands))
        return moved(base, weighted_sum(vectors, base, normalize=normalize), scale)

    return Passes(merge, trimming.survey)
