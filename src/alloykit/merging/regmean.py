"""RegMean: every linear layer merged by least squares on its members' own inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.errors import CheckpointError
from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.matrices import LEAST_RIDGE, damped_solution
from alloykit.merging.ranges import require_number
from alloykit.numerics import weighted_mean
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"gram"}),
    paper="Jin et al., Dataless Knowledge Fusion by Merging Weights, 2022, arXiv:2212.09849.",
)
def regmean(reduce_non_diagonal: float = 0.9, ridge: float = 1e-6) -> Passes:
    """Merge every linear layer so that it answers its members' inputs as they did (RegMean).

    minimise over W: Σ wₜ · ‖(W − Wₜ)·Xₜᵀ‖², which is least squares:
    W = (Σ wₜ·Wₜ·G̃ₜ) · (Σ wₜ·G̃ₜ)⁻¹ with Gₜ = Xₜᵀ·Xₜ / n and G̃ = a·G + (1 − a)·diag(G).
    Tensors without a Gram matrix: Σ wₜ · memberₜ.

    Use it when some hundred unlabelled inputs of every member's task are at hand: collect Gram
    matrices with ``alloykit stats gram`` first. Needs no base.

    Args:
        reduce_non_diagonal: What is left of the elements off the diagonal (a), in [0, 1]: 0
            weighs every input by itself, 1 is plain least squares. The default 0.9 is the
            authors', who use 0.1 for T5.
        ridge: Pull towards the weighted mean of the members, as a fraction of the diagonal of
            Σ wₜ·G̃ₜ, at least 1e-15. Inputs that were always zero keep that mean.

    Shapes:
        members [member, out, *in], gram [member, in, in] -> [out, *in]; convolutions are seen as
        [out, in · height · width]

    Needs:
        gram: for every member Xᵀ·X / n of the layer's inputs X, under the name of its weight.

    Raises:
        InvalidParameter: A parameter outside its range.
        CheckpointError: Gram matrices of another size, or that are none.

    Example:
        >>> import torch
        >>> tensors = (torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 7.0]]))
        >>> gram = (torch.diag(torch.tensor([3.0, 0.0])), torch.diag(torch.tensor([1.0, 0.0])))
        >>> group = TensorGroup("w", ("a", "b"), tensors, (0.5, 0.5), stats={"gram": gram})
        >>> regmean().merge(group, None).round(decimals=4)
        tensor([[1.5000, 6.0000]])

    References:
        Jin, Ren, Preoţiuc-Pietro, Cheng: Dataless Knowledge Fusion by Merging Weights of Language
        Models, 2022, arXiv:2212.09849. Differs from the authors' code,
        which inverts the sum as it is, in the ridge: it makes the solution unique, pulls to the
        mean of the members instead of zero, and lets equal members give exactly that member.
        RegMean++ (Nguyen et al., 2025, arXiv:2508.03121) is this method with Gram matrices that
        were collected through the merged layers: ``alloykit stats gram --through-merged``.
    """
    a = reduce_non_diagonal
    require_number("regmean", "reduce_non_diagonal", a, low=0.0, high=1.0)
    require_number("regmean", "ridge", ridge, low=LEAST_RIDGE)

    def merge(group: TensorGroup, _: None) -> Tensor:
        mean = weighted_mean(group.tensors, group.weights)
        given = group.stats.get("gram")
        if given is None or mean.dim() < 2 or not mean.numel():
            return mean
        flat = mean.reshape(len(mean), -1).double()
        grams = _square(group, given, flat.shape[1])
        total = flat.new_zeros(flat.shape[1], flat.shape[1])
        right = flat.new_zeros(flat.shape[1], len(mean))
        for tensor, weight, gram in zip(group.tensors, group.weights, grams, strict=True):
            reduced = gram.double() * (a * weight)
            reduced.diagonal().copy_(gram.diagonal().double() * weight)
            total += reduced
            # From the mean, so that equal members leave nothing to solve for.
            right += reduced @ (tensor.reshape(flat.shape).double() - flat).T
        if not bool(right.any()):
            return mean
        diagonal = total.diagonal()
        damping = ridge * torch.where(diagonal > 0.0, diagonal, 1.0)
        correction = damped_solution(total, right, damping).T
        return (flat + correction).reshape(mean.shape).to(mean.dtype)

    return Passes(merge, unit="tensor")


def _square(group: TensorGroup, grams: Sequence[Tensor], inputs: int) -> list[Tensor]:
    """The Gram matrices; one with as many elements as the tensor comes in the tensor's shape."""
    wrong = [
        f"{member}: {list(gram.shape)}"
        for member, gram in zip(group.members, grams, strict=True)
        if gram.numel() != inputs**2
    ]
    if wrong:
        raise CheckpointError(
            f"{group.name} has {inputs} inputs, and its Gram matrices are of another size: "
            f"{', '.join(wrong)}. Collect the statistics from these very models."
        )
    return [gram.reshape(inputs, inputs) for gram in grams]
