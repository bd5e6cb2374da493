from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import MissingInput
from alloykit.execution.scanning import TensorScan
from alloykit.merging.gram import (
    affine,
    base_of,
    combined,
    inner_products,
    line_products,
    lines_of,
    spread_products,
    task_vector_products,
)
from alloykit.types import TensorGroup

SIZES = [0, 1, 7, 4096, 4097, 100_000]


def vectors(count, size, seed=0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(size, generator=generator, dtype=dtype) for _ in range(count)]


def exactly(rows):
    wide = torch.stack(list(rows)).double()
    return wide @ wide.mT


def scan_of(tensors, base=None, seed=0):
    shape = tuple(tensors[0].shape)
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = (1 / len(tensors),) * len(tensors)

    def read(start, stop):
        cut = [t.reshape(-1)[start:stop] for t in tensors]
        part = None if base is None else base.reshape(-1)[start:stop]
        return TensorGroup("w", names, tuple(cut), weights, base=part, start=start)

    return TensorScan("w", shape, names, weights, seed, read)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_are_exact_to_float32s_rounding_or_better(size, dtype):
    rows = vectors(3, size, dtype=dtype)
    found, expected = inner_products(rows), exactly(rows)
    assert found.dtype == torch.float64
    lengths = expected.diagonal().sqrt()
    limit = 3e-7 if dtype == torch.float32 and size > 4096 else 1e-14
    assert bool(((found - expected).abs() <= limit * torch.outer(lengths, lengths)).all())


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_inner_products_of_very_short_and_long_vectors_are_exact(scale):
    rows = vectors(2, 10_000, scale=scale)
    torch.testing.assert_close(inner_products(rows), exactly(rows), rtol=1e-6, atol=0)


def test_products_of_equal_vectors_are_equal_to_the_bit():
    row = vectors(1, 70_000)[0]
    found = inner_products([row, row.clone(), row.clone()])
    assert len(set(found.reshape(-1).tolist())) == 1


def test_whole_tensors_are_summed_over_their_blocks():
    tensors, base = vectors(3, 150_000), vectors(1, 150_000, seed=9)[0]
    rows = [t - base for t in tensors]
    torch.testing.assert_close(
        torch.from_numpy(task_vector_products(scan_of(tensors, base))), exactly(rows),
        rtol=1e-6, atol=0.05,
    )  # fmt: skip
    torch.testing.assert_close(
        torch.from_numpy(task_vector_products(scan_of(tensors))), exactly(tensors),
        rtol=1e-6, atol=0.05,
    )  # fmt: skip


def test_how_far_members_are_apart_does_not_drown_in_their_lengths():
    base, *noise = vectors(3, 10_000)
    tensors = [base, *(base + 1e-5 * n for n in noise)]
    found = torch.from_numpy(spread_products(scan_of(tensors)))
    assert found[0].tolist() == found[:, 0].tolist() == [0.0, 0.0, 0.0]
    apart = exactly([t - base for t in tensors[1:]])
    torch.testing.assert_close(found[1:, 1:], apart, rtol=1e-5, atol=1e-10)


def test_a_single_member_is_not_spread():
    assert spread_products(scan_of(vectors(1, 5))).tolist() == [[0.0]]


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("scale", [1e-25, 1.0])
def test_lines_have_their_own_products(base, scale):
    tensors = tuple(t.reshape(6, 50) for t in vectors(3, 300, scale=scale))
    origin = scale * torch.ones(6, 50) if base else None
    group = TensorGroup("w", ("a", "b", "c"), tensors, (1 / 3,) * 3, base=origin)
    found = line_products(lines_of(group, (6, -1) if base is None else (6, 50)))
    rows = [t if origin is None else t - origin for t in tensors]
    for line in range(6):
        expected = exactly([row[line] for row in rows])
        torch.testing.assert_close(found[line], expected, rtol=1e-5, atol=1e-6 * scale**2)


def test_a_lines_products_do_not_depend_on_its_neighbours():
    rows = torch.stack(vectors(2, 300), 0).reshape(2, 6, 50).transpose(0, 1).contiguous()
    rows[3] *= 1e-25
    rows[4] = 0.0
    whole = line_products(rows)
    parts = torch.cat([line_products(line) for line in rows.split(1)])
    assert torch.equal(whole, parts)


@given(
    st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=5),
    st.integers(0, 1000),
    st.booleans(),
)
def test_sums_are_those_of_float64(coefficients, seed, coarse):
    tensors = vectors(len(coefficients), 50, seed)
    wide = [c * t.double() for c, t in zip(coefficients, tensors, strict=True)]
    size = sum(w.abs() for w in wide) + 1e-30
    found = combined(tensors, coefficients, coarse=coarse).double()
    assert bool(((found - sum(wide)).abs() <= 4e-7 * size).all())
    rest = (*coefficients, 1.0 - math.fsum(coefficients))
    more = [*tensors, vectors(1, 50, seed + 1)[0]]
    exact = sum(c * t.double() for c, t in zip(rest, more, strict=True))
    size = sum((c * t).abs() for c, t in zip(rest, more, strict=True)) * len(rest) + 1e-30
    assert bool(((affine(more, rest, coarse=coarse) - exact).abs() <= 1e-6 * size).all())


@pytest.mark.parametrize(
    "coefficients",
    [(0.3, 0.7), (1.5, -0.5), (-0.5, 1.5), (0.1, 0.2, 0.7), (-1.0, -1.0, 3.0), (1.0,)],
)
def test_equal_tensors_come_out_exactly(coefficients):
    tensor = torch.tensor([-0.0, 0.0, 0.1, -3e38, 1e-45])
    total = combined([tensor.clone() for _ in coefficients], coefficients)
    assert torch.equal(total.view(torch.int32), tensor.view(torch.int32))
    total.zero_()
    assert tensor[2] == 0.1 * torch.ones(())


def test_a_large_tensor_of_small_weight_does_not_cost_digits():
    tensors = [torch.tensor([0.1]), torch.tensor([1e6])]
    found = affine(tensors, (1.0 - 1e-7, 1e-7)).double()
    assert found.item() == pytest.approx(float(tensors[0]) * (1.0 - 1e-7) + 0.1, rel=3e-7)


def test_what_has_no_weight_is_not_looked_at():
    broken, fine = torch.tensor([math.nan]), torch.tensor([2.0])
    assert combined([broken, fine], (0.0, 0.5)).item() == 1.0
    assert affine([broken, fine], (0.0, 1.0)).item() == 2.0
    assert combined([fine, fine], (0.0, 0.0)).item() == 0.0


def test_a_missing_base_is_said():
    group = TensorGroup("w", ("a",), (torch.ones(1),), (1.0,))
    with pytest.raises(MissingInput, match=r"ties starts from a base, and no base .* Pass base="):
        base_of("ties", group)
    assert base_of("ties", replace(group, base=torch.zeros(1))).item() == 0.0
