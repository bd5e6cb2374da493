"""Arithmetic of the methods that see a weight as a linear map, all of it in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import reduce
from typing import overload

import torch
from torch import Tensor

from alloykit.errors import CheckpointError, InvalidParameter
from alloykit.merging.contract import Passes
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.types import TensorGroup

EMBEDDINGS = "*embed*, *wte*, *wpe*"
"""Tables of rows that are looked up: no linear map reads them, and they are the largest tensors."""

LEAST_RIDGE = 1e-15
"""Below it float64 does not notice what is added to a diagonal."""

ATTEMPTS = 6
"""How often a failed factorisation is tried again with ten times the damping."""

Combine = Callable[[Sequence[Tensor], torch.dtype], Tensor]
"""Task vectors ``[out, in]`` in float64, and the dtype they had -> one, ``[out, in]``."""


def on_matrices(method: str, combine: Combine, scale: float, exclude: str) -> Passes:
    """A method that combines task vectors as matrices, and averages those of all other tensors.

    merged = base + scale · combine(w₁·δ₁, …), or base + scale · Σ wₜ·δₜ / T for vectors, scalars
    and excluded names

    Args:
        method: Its name, for errors.
        combine: Combines matrices; convolutions come as ``[out, in · height · width]``.
        scale: Length of the step along the combined task vector, finite.
        exclude: Globs of tensor names, with commas between them.
    """
    require_number(method, "scale", scale)
    if not isinstance(exclude, str):
        raise InvalidParameter(
            f"The 'exclude' parameter of {method} must be text: names or globs of tensors with "
            f"commas between them, such as {EMBEDDINGS!r}. Got {exclude!r}."
        )

    def merge(group: TensorGroup, _: None) -> Tensor:
        base = base_of(method, group)
        if all(torch.equal(tensor, base) for tensor in group.tensors):
            return base.clone()
        negated = NegatedDeltas(group, base)
        if is_matrix(group, exclude):
            step = combine(negated, base.dtype).reshape(base.shape)
        else:
            step = summed(negated).reshape(base.shape) / len(negated)
        return torch.sub(base.double(), step, alpha=scale).to(base.dtype)

    return Passes(merge, unit="tensor")


class NegatedDeltas(Sequence[Tensor]):
    """w · (base − member) as ``[out, in]`` in float64, each made anew when it is asked for.

    They are turned round so that a zero that all have keeps its sign when they are subtracted
    from the base, and not all held at once since that would take twice the members' memory.
    """

    def __init__(self, group: TensorGroup, base: Tensor) -> None:
        self.group, self.base = group, base

    def __len__(self) -> int:
        return len(self.group.tensors)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        delta = self.base.double() - self.group.tensors[index].double()
        rows = len(delta) if delta.dim() else 1
        return delta.mul_(self.group.weights[index]).reshape(rows, -1 if delta.numel() else 0)


def summed(deltas: Sequence[Tensor]) -> Tensor:
    """Their sum, of which two are held at a time."""
    return reduce(torch.add, deltas)


def is_matrix(group: TensorGroup, exclude: str = "") -> bool:
    """Whether a group's tensors have two dimensions or more, elements, and no excluded name."""
    globs = [part.strip() for part in exclude.split(",") if part.strip()]
    named = any(fnmatchcase(group.name, glob) for glob in globs)
    return group.tensors[0].dim() > 1 and group.tensors[0].numel() > 0 and not named


def singular(
    matrix: Tensor, stored: torch.dtype, rank: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The thin singular value decomposition, its null directions set to zero.

    matrix = u · diag(s) · vt

    Singular values up to max(m, n) · eps · s₁, where eps is that of the dtype in which the matrix
    was stored, are rounding noise, and so are their directions: s, u and vt are zero there.

    Args:
        matrix: ``[m, n]`` in float64.
        stored: The dtype that its values had before. From float32 the Gram matrix of the shorter
            side is decomposed, which takes a third of the time and keeps all that float32 could
            tell; from float64 the matrix itself.
        rank: How many of the largest to return; by default min(m, n).

    Shapes:
        -> u [m, rank], s [rank], vt [rank, n]
    """
    if matrix.shape[0] > matrix.shape[1]:
        v, s, ut = singular(matrix.T, stored, rank)
        return ut.T, s, v.T
    if stored == torch.float64:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    else:
        u = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(-1)[:, :rank]
        vt = u.T @ matrix
        s = vt.norm(dim=1)
        vt = vt / s.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    kept = s > max(matrix.shape) * torch.finfo(stored).eps * s[:1].sum()
    return u * kept, s * kept, vt * kept[:, None]


def nearest_orthogonal(matrix: Tensor, stored: torch.dtype) -> Tensor:
    """U · vt of ``singular``: the matrix with all its non-zero singular values set to one.

    Of all matrices with orthonormal columns (or rows) in its span it is the nearest one, the
    solution of the orthogonal Procrustes problem.
    """
    u, _, vt = singular(matrix, stored)
    return u @ vt


def damped_solution(gram: Tensor, right: Tensor, damping: Tensor) -> Tensor:
    """X in (gram + diag(damping)) · X = right, by Cholesky's factorisation.

    Rows and columns are scaled to a unit diagonal first. Where rounding has left the matrix not
    positive definite, the damping is raised tenfold, up to six times.

    Args:
        gram: ``[n, n]``, symmetric, positive semi-definite, float64.
        right: ``[n, k]``.
        damping: ``[n]``, positive.

    Raises:
        CheckpointError: No Gram matrix: NaN, or eigenvalues far below zero.
    """
    for attempt in range(ATTEMPTS):
        damped = gram + torch.diag(damping * 10.0**attempt)
        scaling = damped.diagonal().rsqrt()
        damped.mul_(scaling).mul_(scaling[:, None])
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            solution = torch.cholesky_solve(right * scaling[:, None], factor)
            if bool(torch.isfinite(solution).all()):
                return solution.mul_(scaling[:, None])
    raise CheckpointError(
        f"A matrix of {len(gram)} inputs is no Gram matrix: it is not positive definite, or holds "
        "NaN. Collect the statistics again, and look whether the model's activations are finite."
    )
