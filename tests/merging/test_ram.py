"""RAM, and RAM+ with amplified own elements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.ram import ram
from alloykit.merging.ramplus_tl import ramplus_tl
from alloykit.types import TensorGroup

ONE = [1.0, 2.0, 0.0, 0.0, 5.0, 1e-6]
TWO = [3.0, 0.0, 4.0, 0.0, 7.0, 0.0]


def merged(method, *members, weights=None):
    tensors = tuple(torch.as_tensor(member, dtype=torch.float32) for member in members)
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = tuple(weights or (1.0,) * len(tensors))
    base = torch.zeros_like(tensors[0])
    return merge_whole(method, TensorGroup("w", names, tensors, weights, base=base)).tolist()


def test_shared_elements_are_averaged_and_own_ones_added():
    assert merged(ram(), ONE, TWO) == [2.0, 2.0, 4.0, 0.0, 6.0, 0.0]


def test_a_change_within_epsilon_is_none():
    assert merged(ram(epsilon=0.0), ONE, TWO)[-1] == pytest.approx(1e-6)
    assert merged(ram(epsilon=2.0), ONE, TWO) == [3.0, 0.0, 4.0, 0.0, 6.0, 0.0]


def test_weights_multiply_task_vectors():
    assert merged(ram(), ONE, TWO, weights=(2.0, -1.0)) == [-0.5, 4.0, -4.0, 0.0, 1.5, 0.0]


def test_own_elements_are_amplified_by_what_is_shared():
    """The first shares two and owns one (ratio 2), the second likewise."""
    assert merged(ramplus_tl(r=0.1, alpha=0.2), ONE, TWO) == pytest.approx(
        [2.0, 2.0 * 1.02, 4.0 * 1.02, 0.0, 6.0, 0.0]
    )
    assert merged(ramplus_tl(r=0.1, alpha=5.0), ONE, TWO)[1] == pytest.approx(2.0 * 1.2)
    assert merged(ramplus_tl(r=0.0), ONE, TWO) == merged(ram(), ONE, TWO)


def test_it_counts_over_the_whole_tensor():
    generator = np.random.default_rng(0)
    members = generator.normal(size=(3, 150_000)) * (generator.uniform(size=(3, 150_000)) < 0.4)
    changed = members != 0.0
    count = changed.sum(0)
    shared, own = (changed & (count > 1)).sum(1), (changed & (count == 1)).sum(1)
    factors = 1.0 + 0.5 * np.minimum(shared / own, 3.0)
    expected = np.where(count == 1, (members * factors[:, None]).sum(0), members.sum(0))
    expected /= np.maximum(count, 1)
    found = merged(ramplus_tl(r=0.5, alpha=3.0, epsilon=0.0), *members)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_nothing_shared_or_nothing_owned():
    plus = ramplus_tl(r=1.0, alpha=0.5)
    assert merged(plus, [1.0, 0.0], [0.0, 2.0]) == [1.0, 2.0]
    assert merged(plus, [1.0, 0.0], [3.0, 0.0]) == [2.0, 0.0]
    assert merged(plus, [0.0], [0.0]) == [0.0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ram(epsilon=-1.0), "'epsilon' parameter of ram must be"),
        (lambda: ramplus_tl(epsilon=-1.0), "'epsilon' parameter of ramplus_tl must be"),
        (lambda: ramplus_tl(alpha=-1.0), "'alpha' parameter of ramplus_tl must be"),
        (lambda: ramplus_tl(r=float("nan")), "'r' parameter of ramplus_tl must be"),
    ],
)
def test_parameters_out_of_range(make, text):
    with pytest.raises(InvalidParameter, match=text):
        make()


def test_their_contracts():
    assert ram().needs == ramplus_tl().needs == {"base"}
    assert ram().survey is None
    assert ramplus_tl().survey is not None
