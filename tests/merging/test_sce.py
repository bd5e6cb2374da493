from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.sce import sce, variance
from alloykit.types import TensorGroup


def merged(method, *members, weights=None, base=None):
    tensors = tuple(torch.as_tensor(member) for member in members)
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = tuple(weights or (1.0 / len(tensors),) * len(tensors))
    base = torch.zeros_like(tensors[0]) if base is None else base
    return merge_whole(method, TensorGroup("w", names, tensors, weights, base=base))


def by_definition(base, members, shares, topk):
    """In NumPy and float64, from the paper's three steps."""
    deltas = np.stack([member - base for member in members]).reshape(len(members), -1)
    kept = max(1, round(topk * deltas.shape[1]))
    spread = deltas.var(axis=0)
    deltas *= spread >= np.sort(spread)[-kept]
    squares = (deltas**2).sum(1) * shares
    weights = squares / squares.sum()
    agree = (np.sign(deltas) == np.sign(deltas.sum(0))) & (deltas != 0)
    heads = (weights[:, None] * agree).sum(0)
    total = (weights[:, None] * deltas * agree).sum(0)
    return base + np.divide(total, heads, out=np.zeros_like(total), where=heads > 0).reshape(
        base.shape
    )


@pytest.mark.parametrize("shape", [(33,), (6, 5), (2, 3, 4), (300, 250)])
@pytest.mark.parametrize("topk", [0.05, 0.1, 0.7, 1.0])
def test_it_is_what_the_paper_says(shape, topk):
    base, *members = np.random.default_rng(1).normal(size=(4, *shape))
    shares = (0.2, 0.5, 0.3)
    tensors = map(torch.as_tensor, members)
    found = merged(sce(select_topk=topk), *tensors, weights=shares, base=torch.as_tensor(base))
    np.testing.assert_allclose(found, by_definition(base, members, shares, topk), 1e-12, 1e-14)


def test_weights_are_shares_of_the_squares_however_small():
    for scale in (1.0, 1e-4, 1e-30):
        members = torch.full((10,), 1.0 * scale), torch.full((10,), 3.0 * scale)
        expected = (0.1 * 1.0 + 0.9 * 3.0) * scale
        found = merged(sce(select_topk=1.0), *members)
        torch.testing.assert_close(found, torch.full((10,), expected), rtol=1e-6, atol=0.0)


def test_mergekit_weighs_alike_what_is_small():
    members = torch.full((10,), 1e-4), torch.full((10,), 3e-4)
    found = merged(sce(compat="mergekit"), *members)
    torch.testing.assert_close(found, torch.full((10,), 2e-4))


def test_the_elements_that_vary_most_are_selected():
    members = torch.tensor([5.0, 1.0, 2.0, 0.0]), torch.tensor([5.0, 2.0, -1.0, 0.0])
    assert merged(sce(select_topk=0.5), *members).nonzero().flatten().tolist() == [1, 2]
    assert merged(sce(select_topk=0.0), *members).tolist() == [0.0] * 4


def test_the_default_is_the_papers_tenth_and_mergekits_whole():
    members = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).unbind()
    assert merged(sce(), *members).count_nonzero() == 100
    assert merged(sce(compat="mergekit"), *members).count_nonzero() == 1000


def test_mergekit_takes_the_share_of_what_varies_alone():
    members = torch.tensor([1.0, 3.0, 0.0, 0.0]), torch.zeros(4)
    found = merged(sce(select_topk=0.5, compat="mergekit"), *members)
    assert found.tolist() == [0.0, 3.0, 0.0, 0.0]
    assert merged(sce(select_topk=0.5), *members).tolist() == [1.0, 3.0, 0.0, 0.0]


def test_one_member_and_members_that_changed_nothing():
    values = torch.linspace(-1.0, 1.0, 21)
    torch.testing.assert_close(merged(sce(), values), values)
    assert merged(sce(), torch.zeros(5), torch.zeros(5)).tolist() == [0.0] * 5


def test_the_variance_of_small_numbers_is_not_zero():
    vectors = [torch.tensor([1e-30]), torch.tensor([3e-30])]
    assert variance(vectors).item() == pytest.approx(1e-60, rel=1e-6)
    assert vectors[0].item() == pytest.approx(1e-30)


def test_wide_vectors_are_left_as_they_are():
    vectors = [torch.tensor([1.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)]
    assert variance(vectors).item() == 1.0
    assert [vector.item() for vector in vectors] == [1.0, 3.0]


def test_parameters_out_of_range():
    with pytest.raises(InvalidParameter, match=r"'select_topk' parameter of sce .* 10 % is 0.1"):
        sce(select_topk=10)


def test_its_contract():
    assert sce().needs == {"base"}
    assert sce().weights == "shares"
    assert sce().unit == "element"
