from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.merging.linear import linear
from alloykit.registry import merge_methods
from alloykit.types import TensorGroup


def merged(tensors, weights, **parameters):
    names = tuple(f"m{i}" for i in range(len(tensors)))
    group = TensorGroup("w", names, tuple(tensors), tuple(weights))
    return linear(**parameters).merge(group, None)


def test_it_is_the_weighted_mean():
    tensors = [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 6.0]), torch.tensor([5.0, 0.0])]
    assert merged(tensors, [0.5, 0.25, 0.25]).tolist() == [2.5, 0.5]


def test_it_equals_numpys_average():
    generator = np.random.default_rng(0)
    arrays, weights = generator.normal(size=(20, 4, 3)), generator.dirichlet(np.ones(20))
    result = merged([torch.from_numpy(array) for array in arrays], weights)
    np.testing.assert_allclose(result, np.average(arrays, axis=0, weights=weights), rtol=1e-13)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_tensors_keep_their_shape(shape):
    assert merged([torch.zeros(shape), torch.ones(shape)], [0.5, 0.5]).shape == shape


def test_without_normalize_weights_are_used_as_they_are():
    tensors = [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 6.0])]
    assert merged(tensors, [2.0, -0.5], normalize=False).tolist() == [0.5, -7.0]
    assert merged(tensors, [1.0, 1.0], normalize=False).tolist() == [4.0, 4.0]


def test_its_contract():
    method = linear()
    assert (method.name, dict(method.parameters)) == ("linear", {"normalize": True})
    assert (method.unit, method.weights, method.survey) == ("element", "shares", None)
    assert linear(normalize=False).weights == "factors"
    assert not method.ordered
    assert not method.needs
    assert 1 in method.members
    assert 20 in method.members


def test_what_it_does_not_take_is_named():
    with pytest.raises(InvalidParameter, match="linear has no parameter 'alpha'"):
        merge_methods.build("linear", alpha=1)
