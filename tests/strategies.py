"""Hypothesis strategies: the tensors that real checkpoints hold, in groups and in state dicts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from alloykit.numerics import normalised
from alloykit.types import TensorGroup

AVERAGED = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
INTEGERS = (torch.int64, torch.int32, torch.bool)
SHAPES = ((), (0,), (1,), (3, 0), (7,), (3, 5), (2, 3, 2), (33,))


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    """Reproducible values with zeros of both signs among them."""
    generator = torch.Generator().manual_seed(seed)
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    tensor = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
    kinds = torch.randint(0, 10, shape, generator=generator)
    tensor = torch.where(kinds == 0, 0.0, torch.where(kinds == 1, -0.0, tensor))
    if dtype.is_complex:
        other = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
        return torch.complex(tensor, other).to(dtype)
    return tensor.to(dtype)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values, contiguous or as a transposed or strided view."""
    if layout == "strided":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2] if tensor.dim() else tensor
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    return tensor


layouts = st.sampled_from(["contiguous", "strided", "transposed"])
scales = st.sampled_from([1e-30, 1e-3, 1.0, 100.0])
seeds = st.integers(0, 2**31)
real_dtypes = st.sampled_from([torch.float32, torch.float64])
compute_dtypes = st.sampled_from([torch.float32, torch.float64, torch.complex64])


@st.composite
def shares(draw: st.DrawFn, count: int, least: int = 1) -> tuple[float, ...]:
    """Weights that sum to one, zeros among them but for ``least`` of them."""
    given = draw(
        st.lists(
            st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.5]), min_size=count, max_size=count
        ).filter(lambda weights: sum(map(bool, weights)) >= least)
    )
    return normalised(given, count)


@st.composite
def factors(draw: st.DrawFn, count: int, least: int = 1) -> tuple[float, ...]:
    """Weights of either sign, zeros among them but for ``least`` of them."""
    given = draw(
        st.lists(
            st.sampled_from([0.0, -0.5, 0.3, 1.0, 1.7]), min_size=count, max_size=count
        ).filter(lambda weights: sum(map(bool, weights)) >= least)
    )
    return tuple(given)


@st.composite
def groups(
    draw: st.DrawFn,
    *,
    members: st.SearchStrategy[int] | None = None,
    dtypes: st.SearchStrategy[torch.dtype] = real_dtypes,
    base: bool = False,
    weights: Callable[[int], st.SearchStrategy[tuple[float, ...]]] = shares,
    stats: frozenset[str] = frozenset(),
) -> TensorGroup:
    """The tensors of one name from some members, in a compute dtype."""
    count = draw(members if members is not None else st.integers(1, 5))
    shape, dtype, scale = draw(st.sampled_from(SHAPES)), draw(dtypes), draw(scales)
    start, layout = draw(seeds), draw(layouts)
    tensors = [
        laid_out(values(shape, dtype, start + index, scale), layout) for index in range(count + 1)
    ]
    return TensorGroup(
        name="layer.weight",
        members=tuple(f"member {index}" for index in range(count)),
        tensors=tuple(tensors[:count]),
        weights=draw(weights(count)),
        base=tensors[count] if base else None,
        stats={kind: statistics(kind, shape, dtype, start, count) for kind in sorted(stats)},
        seed=draw(st.integers(0, 5)),
    )


def statistics(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, start: int, count: int
) -> tuple[Tensor, ...]:
    """A Fisher diagonal, or a Gram matrix of the last dimensions, for every member."""
    found = []
    for index in range(count):
        if kind == "fisher":
            found.append(values(shape, dtype, start + 100 + index).square())
        else:
            rows = values((7, math.prod(shape[1:])), dtype, start + 100 + index)
            found.append(rows.T @ rows / 7)
    return tuple(found)


@st.composite
def state_dicts(draw: st.DrawFn, count: int) -> list[dict[str, Tensor]]:
    """State dicts of one architecture: every kind of tensor, two of them tied in all."""
    start, scale = draw(seeds), draw(st.sampled_from([1e-3, 1.0, 30.0]))
    tensors = draw(
        st.lists(
            st.tuples(st.sampled_from(AVERAGED), st.sampled_from(SHAPES), layouts),
            min_size=1,
            max_size=6,
        )
    )
    integers = draw(st.lists(st.sampled_from(INTEGERS), max_size=2))
    states = []
    for member in range(count):
        state = {
            f"layer{index}.weight": laid_out(
                values(shape, dtype, start + 100 * member + index, scale), layout
            )
            for index, (dtype, shape, layout) in enumerate(tensors)
        }
        # Integers are the same in all members: others have no average.
        for index, dtype in enumerate(integers):
            state[f"layer{index}.table"] = values((4,), dtype, start + index)
        state["bn.num_batches_tracked"] = torch.tensor(100 + member)
        state["head.weight"] = state["layer0.weight"]
        states.append(state)
    return states
