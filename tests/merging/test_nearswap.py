from __future__ import annotations

import math

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.merging.nearswap import nearswap
from alloykit.types import TensorGroup


def merged(tensor, base, t):
    group = TensorGroup("w", ("other",), (tensor,), (1.0,), base=base)
    return nearswap(t=t).merge(group, None)


def test_near_numbers_are_taken_over_and_far_ones_move_by_t():
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    tensor = torch.tensor([1.1, 0.95, 3.0, -3.0])
    found = merged(tensor, base, 0.2)
    assert torch.equal(found[:2], tensor[:2]), "taken over to the bit"
    torch.testing.assert_close(found[2:], torch.tensor([1.2, 0.8]))
    small = torch.tensor([1e-9])
    assert torch.equal(merged(small, torch.ones(1), 2.0), small)


def test_no_move_is_the_base_and_a_large_one_the_member():
    base, tensor = torch.tensor([-0.0, 1.0]), torch.tensor([0.5, 3e38])
    kept = merged(tensor, base, 0.0)
    assert torch.equal(kept.view(torch.int32), base.view(torch.int32))
    assert torch.equal(merged(tensor, base, 3e38), tensor)


@pytest.mark.parametrize("t", [-1e-9, math.inf, math.nan])
def test_the_move_is_at_least_nothing(t):
    with pytest.raises(InvalidParameter, match="'t' parameter of nearswap must be a finite number"):
        nearswap(t=t)


def test_its_contract():
    assert nearswap().needs == {"base"}
    assert list(nearswap().members) == [1]
