from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alloykit.alignment.deriving import permutation_groups
from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.alignment.proof import Trial, check_same, permute, prove
from alloykit.errors import AlignmentError

INPUTS = torch.linspace(-1, 1, 20).reshape(5, 4)


def mlp():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    # As models come from their initialisation: zeros and ones that hide mistakes.
    nn.init.zeros_(model[0].bias)
    return model


def without(groups: PermutationGroups, tensor: str) -> PermutationGroups:
    (group,) = groups.groups
    left = tuple(place for place in group.axes if place.tensor != tensor)
    return PermutationGroups(
        (PermutationGroup(group.name, group.size, left),), groups.shapes, groups.buffers
    )


def test_true_groups_are_proved_to_rounding_of_float64():
    model = mlp()
    assert prove(permutation_groups(model, INPUTS), Trial.of(model, INPUTS, noise=0)) < 1e-14


@pytest.mark.parametrize(
    "tensor",
    ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight"],
)
def test_a_forgotten_tensor_is_found_even_where_all_its_values_are_equal(tensor):
    model = mlp()
    groups = without(permutation_groups(model, INPUTS), tensor)
    with pytest.raises(AlignmentError, match="0   changes the outputs by"):
        prove(groups, Trial.of(model, INPUTS, noise=0))


def test_the_error_names_the_groups_at_fault_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    right = permutation_groups(model, INPUTS)
    wrong = PermutationGroup("outputs", 3, (Place("2.weight", 0), Place("2.bias", 0)))
    with pytest.raises(AlignmentError) as caught:
        prove(
            PermutationGroups((*right.groups, wrong), right.shapes),
            Trial.of(model, INPUTS, noise=0),
        )
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert len(lines) == 1
    assert lines[0].startswith("  outputs   changes the outputs by ")


def test_models_that_differ_from_run_to_run_say_so():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + torch.rand(3)

    model = Noisy(nn.Linear(4, 8), nn.Linear(8, 3))
    groups = permutation_groups(nn.Sequential(*model), INPUTS)
    with pytest.raises(AlignmentError, match="gives other outputs each time it is run"):
        prove(groups, Trial.of(model, INPUTS, noise=0))


def test_outputs_of_nan_prove_nothing():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    groups = permutation_groups(model, INPUTS)
    with pytest.raises(AlignmentError, match="gives NaN on these inputs"):
        prove(groups, Trial.of(model, INPUTS * float("nan")))


def test_infinite_outputs_that_stay_are_no_change():
    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.tensor([True, False, False]), -torch.inf)

    model = Masked(nn.Linear(4, 8), nn.Linear(8, 3))
    assert permutation_groups(model, INPUTS)["0"].size == 8


def test_models_that_insist_on_float32_are_proved_there():
    class Single(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float() * torch.ones(4))

    model = Single(nn.Linear(4, 8), nn.Linear(8, 3))
    assert permutation_groups(model, INPUTS)["0"].size == 8


def test_check_same_takes_a_permutation_and_names_the_model():
    model = mlp()
    groups = permutation_groups(model, INPUTS)
    order = {"0": torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])}
    assert check_same(groups, order, Trial.of(model, INPUTS), "It") < 1e-14
    with torch.no_grad():
        model[0].bias.copy_(torch.arange(8.0))
    trial = Trial.of(model, INPUTS)
    with pytest.raises(AlignmentError, match="Member 3 computes something else once its units"):
        check_same(without(groups, "0.bias"), order, trial, "Member 3")


def test_permuting_in_place_keeps_ties():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    model, tokens = Tied(), torch.tensor([[0, 1], [2, 3]])
    groups = permutation_groups(model, tokens)
    before = copy.deepcopy(model)
    order = torch.tensor([2, 0, 3, 1])
    permute(model, groups, {"embed": order})
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.embed.weight, before.embed.weight[:, order])
    torch.testing.assert_close(model(tokens), before(tokens))


class Scaled(nn.Module):
    """A branch that counts for next to nothing as it is initialised."""

    def __init__(self, scale: float):
        super().__init__()
        self.into, self.out, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.full((4,), scale))

    def forward(self, x):
        return self.head(x + self.scale * self.out(self.into(x).relu()))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 0.0])
def test_a_mistake_in_a_branch_that_is_scaled_down_is_found(scale):
    model = Scaled(scale)
    groups = without(permutation_groups(model, INPUTS), "out.weight")
    with pytest.raises(AlignmentError, match="into   changes the outputs by"):
        prove(groups, Trial.of(model, INPUTS, noise=0))
