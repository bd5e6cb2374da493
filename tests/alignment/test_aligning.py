from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alloykit.alignment.aligning import aligned
from alloykit.alignment.deriving import permutation_groups
from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.alignment.permuting import drawn
from alloykit.alignment.proof import permute
from alloykit.errors import AlignmentError, MismatchedCheckpoints, MissingInput

BATCH = torch.linspace(-1, 1, 24).reshape(6, 4)


def mlp(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def shuffled(model, seed):
    found = copy.deepcopy(model)
    groups = permutation_groups(model, BATCH)
    permute(found, groups, drawn(groups, seed))
    return found


def test_shuffled_copies_average_to_the_model_itself():
    model = mlp()
    members = [model, shuffled(model, 1), shuffled(model, 2)]
    first, *others = aligned(members, BATCH)
    assert first is model
    for other in others:
        assert all(torch.equal(other.state_dict()[n], t) for n, t in model.state_dict().items())


def test_members_stay_as_they_are_and_copies_compute_the_same():
    members = [mlp(seed).train() for seed in range(3)]
    before = [copy.deepcopy(member.state_dict()) for member in members]
    found = aligned(members, BATCH)
    for member, kept, new in zip(members, before, found, strict=True):
        assert all(torch.equal(kept[name], t) for name, t in member.state_dict().items())
        assert member.training
        assert new.training
        torch.testing.assert_close(new.eval()(BATCH), member.eval()(BATCH))
    assert found[1] is not members[1]
    assert any(
        not torch.equal(a, b)
        for a, b in zip(found[1].parameters(), members[1].parameters(), strict=True)
    )


def test_dtypes_and_counts_are_carried():
    members = [mlp(seed).bfloat16() for seed in range(2)]
    members[1](BATCH.bfloat16())
    _, other = aligned(members, BATCH)
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    assert other[1].num_batches_tracked.item() == 1


def test_wrapped_members_stay_wrapped():
    found = aligned([mlp(0), nn.DataParallel(mlp(1))], BATCH)
    assert isinstance(found[1], nn.DataParallel)


def test_one_member_is_aligned_and_none_are_refused():
    model = mlp()
    assert aligned([model], BATCH) == [model]
    with pytest.raises(MissingInput, match="no models to align"):
        aligned([], BATCH)


def test_other_widths_are_refused_with_all_differences():
    with pytest.raises(MismatchedCheckpoints) as caught:
        aligned([mlp(), mlp(), mlp(width=9)], BATCH)
    text = str(caught.value)
    assert text.startswith("3 models cannot be aligned: their tensors differ.\n")
    assert "  0.weight   member 1: [8, 4]   member 3: [9, 4]\n" in text
    assert "equal widths" in text
    with pytest.raises(MismatchedCheckpoints, match=r"3\.weight   member 1:.*member 2: missing"):
        aligned([mlp(), mlp()[:3]], BATCH)


def test_members_that_compute_something_else_are_refused():
    class Ordered(nn.Sequential):
        """The same tensors, and hidden units whose order matters."""

        def forward(self, x):
            return super().forward(x) if self.plain else self[1](self[0](x).cumsum(-1))

    members = [Ordered(nn.Linear(4, 8), nn.Linear(8, 3)) for _ in range(2)]
    members[0].plain, members[1].plain = True, False
    with pytest.raises(AlignmentError, match="Member 2 computes something else"):
        aligned(members, BATCH)


class Branching(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else -x


def test_groups_by_hand_serve_models_that_cannot_be_traced():
    members = [Branching(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)]
    with pytest.raises(AlignmentError, match="cannot be traced"):
        aligned(members, BATCH)
    axes = (Place("0.weight", 0), Place("0.bias", 0), Place("2.weight", 1))
    shapes = {name: tuple(tensor.shape) for name, tensor in members[0].state_dict().items()}
    groups = PermutationGroups((PermutationGroup("hidden", 8, axes),), shapes)
    _, other = aligned(members, BATCH, groups=groups)
    torch.testing.assert_close(other(BATCH), members[1](BATCH))
    wrong = PermutationGroups((PermutationGroup("hidden", 8, axes[1:]),), shapes)
    with pytest.raises(AlignmentError, match="hidden   changes the outputs by"):
        aligned(members, BATCH, groups=wrong)


def test_models_of_unknown_operations_alone_are_refused():
    class Recurrent(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    with pytest.raises(AlignmentError, match=r"Recurrent has no units .* not known \(lstm\)"):
        aligned([Recurrent(4, 5), Recurrent(4, 5)], BATCH)


def test_models_without_hidden_units_need_no_alignment():
    members = [nn.Linear(4, 3), nn.Linear(4, 3)]
    _, other = aligned(members, BATCH)
    assert torch.equal(other.weight, members[1].weight)
