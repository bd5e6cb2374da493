from __future__ import annotations

import math

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.merging.passthrough import passthrough
from alloykit.types import TensorGroup


def merged(tensor, **parameters):
    return passthrough(**parameters).merge(TensorGroup("w", ("only",), (tensor,), (1.0,)), None)


def test_it_copies_to_the_bit():
    tensor = torch.tensor([-0.0, 1e-45, 3e38])
    found = merged(tensor)
    assert torch.equal(found.view(torch.int32), tensor.view(torch.int32))
    assert found.data_ptr() != tensor.data_ptr()


def test_a_scale_multiplies():
    assert merged(torch.tensor([2.0, -4.0]), scale=-0.5).tolist() == [-1.0, 2.0]
    assert merged(torch.tensor([2.0]), scale=0.0).tolist() == [0.0]


def test_it_takes_one_model_and_a_finite_scale():
    assert list(passthrough().members) == [1]
    with pytest.raises(InvalidParameter, match="'scale' parameter of passthrough must be a finite"):
        passthrough(scale=math.inf)
