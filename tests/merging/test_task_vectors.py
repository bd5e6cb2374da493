from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.merging.task_vectors import (
    MOST,
    elected_sum,
    just_below,
    kept_at_random,
    moved,
    per_member,
    require_density,
    task_vectors,
    weighted_sum,
)
from alloykit.types import TensorGroup


def group(*members, base=None, weights=None, name="w", seed=0):
    tensors = tuple(torch.as_tensor(member, dtype=torch.float32) for member in members)
    names = tuple(f"m{i}" for i in range(len(tensors)))
    base = torch.zeros_like(tensors[0]) if base is None else torch.as_tensor(base)
    weights = tuple(weights or (1.0,) * len(tensors))
    return TensorGroup(name, names, tensors, weights, base=base, seed=seed)


def elected(*vectors, weights=None, normalize=True, compat=None):
    """What election makes of task vectors, the right way round."""
    given = group(*vectors, weights=weights)
    total = elected_sum(task_vectors(given), given.base, normalize=normalize, compat=compat)
    return moved(given.base, total).tolist()


def test_task_vectors_come_turned_round_and_without_members_of_weight_zero():
    given = group([3.0], [float("nan")], [1.0], base=torch.tensor([1.0]), weights=(2.0, 0.0, -1.0))
    assert [(w, v.tolist()) for w, v in task_vectors(given)] == [(2.0, [-2.0]), (-1.0, [0.0])]


def test_the_sign_of_the_larger_mass_wins_and_those_who_disagree_do_not_count():
    assert elected([3.0], [2.0], [-4.0]) == [2.5]
    assert elected([3.0], [2.0], [-6.0]) == [-6.0]
    assert elected([3.0], [2.0], [-4.0], normalize=False) == [5.0]


def test_who_says_nothing_does_not_count():
    assert elected([3.0, 0.0], [0.0, 0.0], [5.0, 0.0]) == [4.0, 0.0]


def test_weights_shift_the_vote_and_the_mean():
    assert elected([3.0], [-2.0], weights=(1.0, 2.0)) == [-2.0]
    assert elected([3.0], [6.0], weights=(2.0, 1.0)) == [4.0]
    assert elected([3.0], [6.0], weights=(2.0, 1.0), normalize=False) == [12.0]


def test_a_negative_weight_votes_and_moves_against_its_task_vector():
    assert elected([3.0], [-5.0], weights=(1.0, -1.0)) == [4.0]
    assert elected([3.0], [5.0], weights=(1.0, -1.0)) == [-5.0]


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.7, 1.1])
def test_votes_that_balance_add_nothing(weight):
    values = torch.linspace(0.01, 7.0, 999)
    assert not any(elected(values, -values, weights=(weight, weight)))


def test_votes_that_balance_count_as_positive_in_mergekit():
    assert elected([0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], compat="mergekit") == [0.5, 0.5, 0.0]


def test_mergekit_divides_by_weights_with_their_signs():
    assert elected([3.0], [-5.0], weights=(2.0, -1.0), compat="mergekit") == [11.0]
    assert elected([3.0], [-5.0], weights=(1.0, -1.0), compat="mergekit") == [8.0]
    assert elected([0.0], [0.0], weights=(1.0, -1.0), compat="mergekit") == [0.0]


def test_small_weights_are_not_lost_beside_large_ones():
    """The weights of those who agree are summed apart from those of the others."""
    result = elected([1000.0], [-1e-6], weights=(1e-6, 1.0))
    assert result == pytest.approx([1000.0], rel=1e-6)


def test_it_equals_the_definition():
    generator = np.random.default_rng(0)
    vectors, weights = generator.normal(size=(4, 500)), generator.uniform(-1, 2, 4)
    votes = vectors * weights[:, None]
    sign = np.sign(votes.sum(0))
    agree = np.sign(votes) == sign
    total = (votes * agree).sum(0)
    for normalize, expected in (
        (False, total),
        (True, total / (np.abs(weights)[:, None] * agree).sum(0)),
    ):
        result = elected(*vectors, weights=tuple(weights), normalize=normalize)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_nobody_at_all_adds_nothing():
    like = torch.zeros(3)
    assert elected_sum([], like, normalize=True).tolist() == [0.0] * 3


def test_nan_stays_nan():
    assert math.isnan(elected([math.nan], [1.0])[0])


def test_the_weighted_sum_and_mean():
    vectors = [(2.0, torch.tensor([1.0, -1.0])), (-0.5, torch.tensor([4.0, 0.0]))]
    like = torch.zeros(2)
    assert weighted_sum(vectors, like).tolist() == [0.0, -2.0]
    assert weighted_sum(vectors, like, normalize=True).tolist() == pytest.approx([0.0, -2.0 / 1.5])


def test_weights_that_cancel_are_not_divided_by():
    vectors = [(1.0, torch.tensor([3.0])), (-1.0, torch.tensor([1.0]))]
    assert weighted_sum(vectors, torch.zeros(1), normalize=True).tolist() == [2.0]


@pytest.mark.parametrize("scale", [1.0, -0.5, 0.0])
def test_a_base_that_does_not_move_keeps_its_bits(scale):
    base = torch.tensor([-0.0, 0.0, 3e38])
    for zero in (0.0, -0.0):
        result = moved(base, torch.full((3,), zero), scale)
        assert torch.equal(result.view(torch.int32), base.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.1, 1.0, 1e-44, 3e38, math.pi])
def test_just_below_is_the_next_number_down(threshold, dtype):
    below = just_below(threshold, dtype)
    assert below < threshold
    kind = np.float32 if dtype == torch.float32 else np.float64
    assert float(np.nextafter(kind(below), kind(math.inf))) >= threshold


def test_just_below_nothing_is_nothing():
    assert just_below(0.0, torch.float32) == 0.0


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.3, 0.999, 1.0 - 2.0**-30, 1.0])
def test_elements_are_kept_with_that_probability(probability):
    given = group(torch.zeros(400_000))
    kept = kept_at_random(given, 0, probability)
    assert set(kept.tolist()) <= {0.0, 1.0}
    deviation = (probability * (1 - probability) / kept.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - probability) <= 5 * deviation + 1e-6
    many = kept_at_random(given, 0, torch.full((400_000,), probability))
    assert float((many != kept).double().mean()) < 1e-6


class Largest(TensorGroup):
    """A group that draws the largest number there is."""

    def uniform(self, member):
        return torch.full_like(self.tensors[0], MOST)


@pytest.mark.parametrize("probability", [1.0, 1.0 - 2.0**-30, torch.ones(3)])
def test_even_the_largest_number_drawn_keeps_an_element_once(probability):
    given = Largest("w", ("a",), (torch.zeros(3),), (1.0,))
    assert kept_at_random(given, 0, probability).tolist() == [1.0] * 3


def test_one_number_or_one_per_member():
    assert per_member("ties", "density", [0.1, 0.2], 2) == (0.1, 0.2)
    with pytest.raises(InvalidParameter, match="'density' parameter of ties has 2 numbers for 3"):
        per_member("ties", "density", [0.1, 0.2], 3)


@pytest.mark.parametrize("density", [20, -0.1, math.nan, "0.2", [0.5, 1.5], [0.5, None]])
def test_a_density_is_a_fraction(density):
    with pytest.raises(InvalidParameter, match=r"must be a number in \[0, 1\]\. Got .*20 % is 0.2"):
        require_density("ties", density)
