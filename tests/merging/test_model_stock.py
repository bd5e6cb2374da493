from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter, InvalidWeights
from alloykit.execution.scanning import merge_whole
from alloykit.merging.model_stock import mean_cosine, model_stock, ratio
from alloykit.types import TensorGroup


def merged(tensors, base, weights=None, **parameters):
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = weights or (1 / len(tensors),) * len(tensors)
    group = TensorGroup("w", names, tuple(tensors), tuple(weights), base=base)
    return merge_whole(model_stock(**parameters), group)


def drawn(count, seed=0, shape=(4, 6)):
    generator = torch.Generator().manual_seed(seed)
    base, common = (torch.randn(shape, generator=generator) for _ in range(2))
    return base, [base + common + torch.randn(shape, generator=generator) for _ in range(count)]


def by_the_paper(tensors, base):
    deltas = [(t - base).double().reshape(-1) for t in tensors]
    count = len(deltas)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosine = sum(float(torch.cosine_similarity(deltas[i], deltas[j], 0)) for i, j in pairs)
    cosine /= len(pairs)
    t = min(max(count * cosine / (1 + (count - 1) * cosine), 0.0), 1.0)
    mean = sum(t.double() for t in tensors) / count
    return (t * mean + (1 - t) * base.double()).float()


@given(st.integers(0, 1000), st.integers(2, 5))
def test_it_is_the_papers_formula(seed, count):
    base, tensors = drawn(count, seed)
    torch.testing.assert_close(merged(tensors, base), by_the_paper(tensors, base))
    rows = [by_the_paper([t[row] for t in tensors], base[row]) for row in range(4)]
    torch.testing.assert_close(merged(tensors, base, filter_wise=True), torch.stack(rows))


def test_a_filter_of_a_convolution_is_a_slice_of_the_first_dimension():
    base, tensors = drawn(2, shape=(3, 2, 3, 3))
    found = merged(tensors, base, filter_wise=True)
    for i in range(3):
        torch.testing.assert_close(found[i], by_the_paper([t[i] for t in tensors], base[i]))


def test_agreeing_opposed_and_unmoved_fine_tunes():
    base, delta = torch.ones(3), torch.tensor([1.0, 2.0, -2.0])
    for wise in (False, True):
        assert torch.equal(merged([base + delta] * 2, base, filter_wise=wise), base + delta)
        assert torch.equal(merged([base + delta, base - delta], base, filter_wise=wise), base)
        assert torch.equal(merged([base, base], base, filter_wise=wise), base)
        found = merged([base, base + delta], base, filter_wise=wise)
        assert torch.equal(found, base), "one that did not move says nothing"


def test_small_task_vectors_have_the_angle_of_large_ones():
    base, tensors = drawn(3)
    base = torch.zeros_like(base)
    for wise in (False, True):
        one = merged([1e-20 * t for t in tensors], base, filter_wise=wise)
        torch.testing.assert_close(one * 1e20, merged(tensors, base, filter_wise=wise))


def test_weights_count_in_the_mean_and_in_the_ratio():
    """Two equal members of half the weight are one of the whole weight, but for independence."""
    cosine = torch.tensor(0.5)
    assert float(ratio(cosine, (0.5, 0.5))) == pytest.approx(2 * 0.5 / 1.5)
    assert float(ratio(cosine, (0.25,) * 4)) == pytest.approx(4 * 0.5 / 2.5)
    # All on one: the mean is that member, and the centre lies at cos θ along it.
    assert float(ratio(cosine, (1.0 - 1e-9, 1e-9))) == pytest.approx(0.5)


def test_the_best_ratio_is_found_where_the_model_of_the_paper_holds():
    """Members = centre + independent errors of one length: t·mean is nearest to the centre."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(20_000, generator=generator, dtype=torch.float64)
    weights = (0.6, 0.3, 0.1)
    deltas = [
        centre + 1.3 * torch.randn(20_000, generator=generator, dtype=torch.float64)
        for _ in weights
    ]
    mean = sum(w * d for w, d in zip(weights, deltas, strict=True))
    nearest = float(mean @ centre / (mean @ mean))
    rows = torch.stack(deltas)
    found = float(ratio(mean_cosine(rows @ rows.T, weights), weights))
    assert found == pytest.approx(nearest, abs=0.01)


def test_one_model_has_nothing_to_be_compared_with():
    base, tensors = drawn(2)
    for wise in (False, True):
        with pytest.raises(InvalidWeights, match="at least two models, and 1 has a weight"):
            merged(tensors, base, (1.0, 0.0), filter_wise=wise)


def test_its_contract():
    method = model_stock()
    assert method.needs == {"base"}
    assert (method.members.start, method.unit) == (2, "element")
    assert model_stock(filter_wise=True).unit == "row"
    with pytest.raises(InvalidParameter, match="'compat' parameter of model_stock"):
        model_stock(compat="yes")
