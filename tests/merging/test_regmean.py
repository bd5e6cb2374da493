from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from alloykit.errors import CheckpointError, InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.regmean import regmean
from alloykit.types import TensorGroup


def inputs(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()


def group(shape, weights=(0.5, 0.5), rows=50, dtype=torch.float32, seed=0):
    """Members with their inputs, and the Gram matrices of those."""
    columns = math.prod(shape[1:])
    tensors = tuple(
        torch.randn(shape, generator=torch.Generator().manual_seed(seed + i), dtype=dtype)
        for i in range(len(weights))
    )
    seen = [inputs(rows, columns, 10 + i) for i in range(len(weights))]
    grams = tuple((x.T @ x / rows).float() for x in seen)
    made = TensorGroup("w", tuple("abc"[: len(weights)]), tensors, weights, stats={"gram": grams})
    return made, seen


def test_it_answers_every_members_inputs_as_well_as_least_squares_can():
    made, seen = group((4, 7), (0.25, 0.75))
    left = torch.cat([math.sqrt(w) * x for w, x in zip(made.weights, seen, strict=True)])
    right = torch.cat(
        [
            math.sqrt(w) * (x @ t.double().T)
            for w, x, t in zip(made.weights, seen, made.tensors, strict=True)
        ]
    )
    expected = torch.linalg.lstsq(left, right).solution.T
    found = merge_whole(regmean(reduce_non_diagonal=1.0), made)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_off_diagonal_is_reduced_as_asked():
    made, _ = group((4, 7))
    a = 0.3
    grams = [g.double() for g in made.stats["gram"]]
    reduced = [a * g + (1 - a) * torch.diag(g.diagonal()) for g in grams]
    numerator = sum(g @ t.double().T for g, t in zip(reduced, made.tensors, strict=True))
    expected = torch.linalg.solve(sum(reduced), numerator).T
    found = merge_whole(regmean(reduce_non_diagonal=a), made)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_with_zero_every_input_is_weighed_by_itself():
    made, _ = group((3, 5))
    d = torch.stack([g.diagonal() for g in made.stats["gram"]])[:, None]
    expected = (d * torch.stack(made.tensors)).sum(0) / d.sum(0)
    found = merge_whole(regmean(reduce_non_diagonal=0.0), made)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_inputs_that_were_always_zero_keep_the_mean():
    made, _ = group((3, 5), (0.25, 0.75))
    grams = tuple(g.clone() for g in made.stats["gram"])
    for gram in grams:
        gram[2], gram[:, 2] = 0.0, 0.0
    found = merge_whole(regmean(), replace(made, stats={"gram": grams}))
    expected = 0.25 * made.tensors[0][:, 2] + 0.75 * made.tensors[1][:, 2]
    torch.testing.assert_close(found[:, 2], expected)
    blind = replace(made, stats={"gram": tuple(torch.zeros_like(g) for g in grams)})
    mean = 0.25 * made.tensors[0] + 0.75 * made.tensors[1]
    torch.testing.assert_close(merge_whole(regmean(), blind), mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_members_give_exactly_that_member(dtype):
    made, _ = group((4, 7), dtype=dtype)
    alike = replace(made, tensors=(made.tensors[0],) * 2)
    assert torch.equal(merge_whole(regmean(), alike), made.tensors[0])


@pytest.mark.parametrize("shape", [(), (0,), (6,), (3, 0), (4, 5)])
def test_without_gram_matrices_it_is_the_mean(shape):
    tensors = (torch.full(shape, 1.0), torch.full(shape, 3.0))
    plain = TensorGroup("w", ("a", "b"), tensors, (0.5, 0.5))
    assert torch.equal(merge_whole(regmean(), plain), torch.full(shape, 2.0))


def test_a_convolution_is_the_matrix_of_its_outputs():
    made, _ = group((4, 2, 3, 3))
    flat = replace(made, tensors=tuple(t.reshape(4, 18) for t in made.tensors))
    assert torch.equal(merge_whole(regmean(), made).reshape(4, 18), merge_whole(regmean(), flat))


def test_a_convolution_with_as_many_outputs_as_inputs_is_no_other():
    made, _ = group((18, 2, 3, 3))
    flat = replace(made, tensors=tuple(t.reshape(18, 18) for t in made.tensors))
    assert torch.equal(merge_whole(regmean(), made).reshape(18, 18), merge_whole(regmean(), flat))


def test_a_square_weight_is_not_taken_for_its_statistics():
    made, _ = group((5, 5))
    turned = replace(made, tensors=made.tensors[::-1], stats={"gram": made.stats["gram"][::-1]})
    torch.testing.assert_close(merge_whole(regmean(), made), merge_whole(regmean(), turned))


def test_few_rows_and_no_reduction_are_solved_all_the_same():
    made, seen = group((3, 40), rows=4)
    found = merge_whole(regmean(reduce_non_diagonal=1.0), made)
    assert torch.isfinite(found).all()
    for x, tensor in zip(seen, made.tensors, strict=True):
        torch.testing.assert_close(x @ found.double().T, x @ tensor.double().T, rtol=0, atol=0.01)


def test_inputs_of_very_unlike_size_are_solved_all_the_same():
    made, _ = group((3, 6))
    scales = torch.logspace(-4, 4, 6)
    grams = tuple(scales[:, None] * g * scales for g in made.stats["gram"])
    stretched = replace(
        made, tensors=tuple(t / scales for t in made.tensors), stats={"gram": grams}
    )
    expected = merge_whole(regmean(), made) / scales
    torch.testing.assert_close(merge_whole(regmean(), stretched), expected, rtol=1e-3, atol=1e-7)


def test_statistics_of_another_model_are_an_error():
    made, _ = group((4, 7))
    wrong = replace(made, stats={"gram": (torch.eye(7), torch.eye(6))})
    with pytest.raises(CheckpointError, match=r"w has 7 inputs.*another size: b: \[6, 6\]"):
        merge_whole(regmean(), wrong)


def test_what_is_no_gram_matrix_is_an_error():
    made, _ = group((4, 7))
    with pytest.raises(CheckpointError, match="no Gram matrix"):
        merge_whole(regmean(), replace(made, stats={"gram": (-torch.eye(7), torch.eye(7) / 2)}))


def test_its_parameters_are_checked():
    with pytest.raises(InvalidParameter, match=r"'reduce_non_diagonal' .* in \[0, 1\]"):
        regmean(reduce_non_diagonal=1.5)
    with pytest.raises(
        InvalidParameter, match="'ridge' parameter of regmean must be a finite number, at least"
    ):
        regmean(ridge=0)


def test_its_contract():
    assert regmean().needs == {"gram"}
    assert regmean().unit == "tensor"
    assert regmean().weights == "shares"
