from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alloykit.errors import CheckpointError, InvalidParameter, MissingInput
from alloykit.execution.scanning import merge_whole
from alloykit.merging.iso_c import iso_c
from alloykit.merging.iso_cts import iso_cts
from alloykit.merging.matrices import (
    EMBEDDINGS,
    damped_solution,
    is_matrix,
    nearest_orthogonal,
    singular,
)
from alloykit.merging.tsv_m import tsv_m
from alloykit.merging.wudi import wudi
from matrix_samples import random_group, step, task_vectors

METHODS = (tsv_m, iso_c, iso_cts, wudi)
EVERY = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def matrix(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).double()


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)])
def test_singular_values_are_those_of_lapack(shape, stored):
    given = matrix(*shape)
    u, s, vt = singular(given, stored)
    torch.testing.assert_close(u * s @ vt, given, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(s, torch.linalg.svdvals(given), rtol=1e-10, atol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(min(shape)).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(vt @ vt.T, torch.eye(min(shape)).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_null_directions_are_zero_and_none_is_made_up(stored):
    u, s, vt = singular(matrix(6, 2) @ matrix(2, 7, 1), stored)
    assert s[1] > 0
    assert not s[2:].any()
    assert not u[:, 2:].any()
    assert not vt[2:].any()
    assert not any(part.any() for part in singular(torch.zeros(3, 4).double(), stored))


def test_a_rank_keeps_the_largest():
    _, s, vt = singular(matrix(6, 8), torch.float32, 2)
    torch.testing.assert_close(s, torch.linalg.svdvals(matrix(6, 8))[:2])
    assert vt.shape == (2, 8)


def test_the_nearest_orthogonal_matrix_is_the_polar_factor():
    from scipy.linalg import polar

    given = matrix(8, 5)
    expected = torch.from_numpy(polar(given.numpy())[0])
    for stored in (torch.float32, torch.float64):
        torch.testing.assert_close(nearest_orthogonal(given, stored), expected)


def test_the_damped_solution_solves_a_badly_scaled_system():
    scales = torch.logspace(-6, 6, 7).double()
    root = matrix(20, 7) * scales
    gram, right = root.T @ root, matrix(7, 3, 2)
    damping = 1e-6 * gram.diagonal()
    found = damped_solution(gram, right, damping)
    unit = matrix(20, 7).T @ matrix(20, 7)
    unit += torch.diag(1e-6 * unit.diagonal())
    expected = torch.linalg.solve(unit, right / scales[:, None]) / scales[:, None]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_rounding_that_cost_the_definiteness_is_damped_away():
    direction = matrix(5, 1)
    gram = (direction @ direction.T).float().double()
    gram -= 3e-6 * torch.eye(5)
    found = damped_solution(gram, direction, torch.full((5,), 1e-6).double())
    assert torch.isfinite(found).all()
    torch.testing.assert_close(gram @ found, direction, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("gram", [-torch.eye(3), torch.full((3, 3), float("nan"))])
def test_what_is_no_gram_matrix_is_an_error(gram):
    with pytest.raises(CheckpointError, match="of 3 inputs is no Gram matrix"):
        damped_solution(gram.double(), torch.ones(3, 1).double(), torch.full((3,), 1e-6).double())


def test_what_counts_as_a_matrix():
    assert is_matrix(random_group(3, 2), EMBEDDINGS)
    assert is_matrix(random_group(3, 2, 5, 5))
    for shape in ((), (3,), (0, 4)):
        assert not is_matrix(random_group(*shape))
    for name in ("model.embed_tokens.weight", "transformer.wte.weight", "transformer.wpe.weight"):
        assert not is_matrix(random_group(3, 2, name=name), EMBEDDINGS)
        assert is_matrix(random_group(3, 2, name=name), "")
    assert not is_matrix(random_group(3, 2, name="head.weight"), "*norm*,head.*")


@EVERY
@pytest.mark.parametrize("shape", [(), (1,), (7,)])
def test_vectors_and_scalars_take_the_mean_of_the_task_vectors(method, shape):
    group = random_group(*shape)
    expected = torch.stack(task_vectors(group)).mean(0)
    torch.testing.assert_close(step(method(scale=0.5), group), 0.5 * expected, atol=1e-6, rtol=1e-5)


@EVERY
def test_excluded_matrices_do_too(method):
    group = random_group(4, 5, name="embeddings.weight")
    expected = torch.stack(task_vectors(group)).mean(0)
    torch.testing.assert_close(step(method(), group), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(step(method(exclude=""), group), expected, atol=1e-3)


@EVERY
def test_a_convolution_is_the_matrix_of_its_outputs(method):
    group = random_group(6, 2, 3, 3)
    flat = replace(
        group,
        tensors=tuple(t.reshape(6, 18) for t in group.tensors),
        base=group.base.reshape(6, 18),
    )
    assert torch.equal(merge_whole(method(), group).reshape(6, 18), merge_whole(method(), flat))


@EVERY
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1), (4, 6), (2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_equal_to_the_base_are_the_base_with_its_zeros(method, shape, dtype):
    base = torch.full(shape, -0.0, dtype=dtype)
    if base.numel() > 1:
        base.view(-1)[0] = 3.5
    group = random_group(*shape, dtype=dtype)
    alike = replace(group, tensors=(base,) * 3, base=base.clone())
    result = merge_whole(method(), alike)
    assert torch.equal(result, base)
    assert torch.equal(torch.signbit(result), torch.signbit(base))
    assert not result.numel() or result.data_ptr() not in (base.data_ptr(), alike.base.data_ptr())


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_are_left_alone(method, dtype):
    group = random_group(4, 6, dtype=dtype)
    before = [t.clone() for t in (*group.tensors, group.base)]
    result = merge_whole(method(), group)
    assert result.dtype == dtype
    assert all(map(torch.equal, before, (*group.tensors, group.base)))


@EVERY
def test_float32_and_float64_agree(method):
    group = random_group(12, 20)
    wide = replace(
        group, tensors=tuple(t.double() for t in group.tensors), base=group.base.double()
    )
    narrow, exact = merge_whole(method(), group), merge_whole(method(), wide)
    torch.testing.assert_close(narrow.double(), exact, rtol=0, atol=3e-7)


@EVERY
def test_weights_multiply_the_task_vectors(method):
    group = random_group(5, 6)
    weights = (2.0, 0.5, -1.0)
    stretched = replace(
        group,
        tensors=tuple(
            group.base + w * (t - group.base) for w, t in zip(weights, group.tensors, strict=True)
        ),
    )
    weighted = step(method(), replace(group, weights=weights))
    torch.testing.assert_close(weighted, step(method(), stretched), atol=2e-5, rtol=1e-4)


@EVERY
def test_the_order_of_the_members_does_not_matter(method):
    group = random_group(5, 6)
    turned = replace(group, members=group.members[::-1], tensors=group.tensors[::-1])
    torch.testing.assert_close(merge_whole(method(), group), merge_whole(method(), turned))


@EVERY
def test_its_parameters_are_checked(method):
    name = method.__name__
    with pytest.raises(InvalidParameter, match=f"'scale' parameter of {name} must be a finite"):
        method(scale=float("inf"))
    with pytest.raises(InvalidParameter, match=f"'exclude' parameter of {name} must be text"):
        method(exclude=3)
    with pytest.raises(MissingInput, match=f"{name} starts from a base"):
        merge_whole(method(), replace(random_group(2, 2), base=None))


@EVERY
def test_its_contract(method):
    made = method()
    assert made.needs == {"base"}
    assert made.unit == "tensor"
    assert made.weights == "factors"
