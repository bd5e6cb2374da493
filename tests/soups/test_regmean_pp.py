from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import alloykit
import digits_samples as digits
from alloykit.data.examples import as_examples
from alloykit.errors import MissingInput
from alloykit.evaluation.gram import gram_matrices
from alloykit.soups.regmean_pp import merged_gram_matrices


def members(count=3):
    models = digits.members()
    inputs, targets = digits.splits()["train"]
    chosen = [models[f"tuned {seed}"] for seed in range(count)]
    data = [
        as_examples((inputs[100 * i : 100 * i + 100], targets[100 * i : 100 * i + 100]), "train")
        for i in range(count)
    ]
    return chosen, data


def test_every_layer_sees_what_the_merged_layers_before_it_give():
    models, data = members()
    found = merged_gram_matrices(models, data)
    first = [gram_matrices(m, d)["0.weight"] for m, d in zip(models, data, strict=True)]
    assert all(torch.equal(own["0.weight"], gram) for own, gram in zip(found, first, strict=True))
    merged = alloykit.merge(models, "regmean", stats={"gram": found})
    for own, split in zip(found, data, strict=True):
        # The merged model's own first layer is what the second one was collected behind.
        expected = gram_matrices(merged, split)["2.weight"]
        torch.testing.assert_close(own["2.weight"], expected)
    plain = [gram_matrices(m, d)["2.weight"] for m, d in zip(models, data, strict=True)]
    assert not torch.allclose(found[0]["2.weight"], plain[0], rtol=1e-3)


def test_the_models_are_left_as_they_were():
    models, data = members(2)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    told = []
    merged_gram_matrices(models, data, progress=lambda *how: told.append(how))
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert told == [("0", 0, 2), ("2", 1, 2)]


def test_a_layer_that_is_called_twice_is_merged_once_from_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.step = nn.Linear(64, 10), nn.Linear(64, 64)

        def forward(self, x):
            return self.head(self.step(self.step(x)))

    torch.manual_seed(0)
    models, (_, data) = [Twice(), Twice()], members(2)
    found = merged_gram_matrices(models, data)
    assert list(found[0]) == ["step.weight", "head.weight"]
    mean = alloykit.average(models)
    torch.testing.assert_close(found[1]["step.weight"], gram_matrices(mean, data[1])["step.weight"])


def test_weights_and_parameters_are_those_of_the_merge():
    models, data = members(2)
    plain = merged_gram_matrices(models, data)
    weighted = merged_gram_matrices(models, data, weights=[0.9, 0.1])
    reduced = merged_gram_matrices(models, data, reduce_non_diagonal=0.0)
    for other in (weighted, reduced):
        assert torch.equal(plain[0]["0.weight"], other[0]["0.weight"])
        assert not torch.allclose(plain[0]["2.weight"], other[0]["2.weight"], rtol=1e-3)


def test_one_data_set_per_model():
    models, data = members(2)
    with pytest.raises(MissingInput, match="2 models and 1 data sets were given"):
        merged_gram_matrices(models, data[:1])
