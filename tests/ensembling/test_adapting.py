"""Adapted members on raw inputs equal the members on their own normalised inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import alloykit
from alloykit.checkpoints.exporting import load_exported, save_exported
from alloykit.data.examples import as_examples
from alloykit.ensembling.adapting import Adapted, adapted, partition_statistics
from alloykit.errors import DataError, InvalidParameter
from alloykit.evaluation.predicting import predict

RAW = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) * 20 + 300


def linear(seed, inputs=4, outputs=3):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).eval()


def test_members_on_one_raw_input_equal_members_on_their_own_normalised_inputs():
    members, own = {}, {}
    for place in range(3):
        part = RAW[place::3] * (place + 1)
        mean, std = partition_statistics((part, torch.zeros(3)))
        members[f"m{place}"] = adapted(linear(place), mean=mean, std=std)
        own[f"m{place}"] = linear(place)((RAW - part.mean(0)) / part.std(0, correction=0))
    for name, member in members.items():
        assert_close(member(RAW), own[name], rtol=1e-5, atol=1e-5)
    pooled = alloykit.ensemble(members)(RAW)
    expected = torch.stack([o.softmax(-1) for o in own.values()]).mean(0).log()
    assert_close(pooled, expected, rtol=1e-5, atol=1e-5)


def test_statistics_equal_numpy_in_many_batches_and_far_from_zero():
    images = np.random.default_rng(0).normal(1e4, 2.0, size=(50, 3, 4, 4))
    split = as_examples((images, np.zeros(50)), "train", batch_size=7)
    feature, channel = partition_statistics(split), partition_statistics(split, "channel")
    assert_close(feature.mean, torch.tensor(images.mean(0)).float())
    assert_close(feature.std, torch.tensor(images.std(0)).float(), rtol=1e-5, atol=0)
    assert_close(channel.std, torch.tensor(images.std((0, 2, 3))).float(), rtol=1e-5, atol=0)
    assert channel.mean.shape == (3,)


def test_what_does_not_vary_has_the_deviation_one():
    mean, std = partition_statistics((torch.tensor([[0.1, 1.0], [0.1, 3.0]]), [0, 1]))
    assert std.tolist() == [1.0, 1.0]
    assert_close(mean, torch.tensor([0.1, 2.0]))


def test_statistics_refuse_several_inputs_and_what_is_not_finite():
    with pytest.raises(DataError, match="these have 2"):
        partition_statistics(((torch.zeros(2, 1), torch.zeros(2, 1)), [0, 1]))
    with pytest.raises(DataError, match="NaN or infinite"):
        partition_statistics((torch.tensor([[math.inf], [0.0]]), [0, 1]))


def test_channels_whole_examples_and_numbers_broadcast():
    images = torch.randint(0, 255, (5, 3, 4, 4), dtype=torch.uint8)
    by_channel = Adapted(nn.Identity(), mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 4.0])(images)
    assert_close(by_channel[:, 2], (images[:, 2].float() - 3) / 4)
    whole = torch.rand(3, 4, 4)
    assert_close(Adapted(nn.Identity(), mean=whole)(images), images - whole)
    assert_close(Adapted(nn.Identity(), std=255)(images), images / 255)


def test_half_precision_members_get_their_dtype_and_the_statistics_keep_theirs():
    member = adapted(linear(0), mean=[300.25] * 4, std=[20.0] * 4).to(torch.bfloat16)
    assert member.mean.dtype == torch.float32
    assert member(RAW).dtype == torch.bfloat16
    expected = linear(0).to(torch.bfloat16)(((RAW - 300.25) / 20).to(torch.bfloat16))
    assert_close(member(RAW), expected)
    assert set(member.state_dict()) == {"mean", "std", "module.weight", "module.bias"}


def test_resizing_equals_interpolate_with_and_without_a_channel():
    images = torch.rand(2, 1, 8, 8)
    expected = F.interpolate(images, (4, 4), mode="bilinear", antialias=True)
    assert_close(Adapted(nn.Identity(), size=4)(images), expected)
    assert_close(Adapted(nn.Identity(), size=(4, 4))(images[:, 0]), expected[:, 0])
    with pytest.raises(DataError, match=r"\[2, 8, 8\] cannot be resized to \[2, 2, 2\]"):
        Adapted(nn.Identity(), size=(2, 2, 2))(images[:, 0])


def test_the_transform_comes_first_and_only_floating_inputs_of_several_change():
    class Both(nn.Module):
        def forward(self, values, mask):
            return values * mask

    member = Adapted(Both(), mean=1.0, transform=lambda tensor: tensor * 10)
    values, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.long)
    assert_close(member(values, mask), torch.full((2, 3), 9.0))
    assert_close(member(mask=mask, values=values), torch.full((2, 3), 9.0))


def test_classes_are_placed_and_absent_ones_share_the_mass():
    member = linear(0, outputs=2)
    mapped = adapted(member, classes=["dog", "ant"], common=["ant", "bee", "cat", "dog"])(RAW)
    p = member(RAW).softmax(-1)
    assert_close(mapped.exp().sum(-1), torch.ones(9))
    assert_close(mapped[:, 3].exp(), p[:, 0] * (1 - 1e-4))
    assert_close(mapped[:, 0].exp(), p[:, 1] * (1 - 1e-4))
    assert_close(mapped[:, 1:3], torch.full((9, 2), math.log(0.5e-4)))
    every = adapted(member, classes=[1, 0], common=2)(RAW)
    assert_close(every, member(RAW).log_softmax(-1).flip(-1))
    never = adapted(member, classes=[0, 1], common=3, absent_mass=0.0)(RAW)
    assert bool(torch.isfinite(never).all())


def test_single_outputs_become_two_classes_and_probabilities_are_seen():
    single = adapted(linear(0, outputs=1), classes=["no", "yes"], common=["maybe", "yes", "no"])
    z = linear(0, outputs=1)(RAW)[:, 0]
    assert_close(single(RAW)[:, 1].exp(), torch.sigmoid(z) * (1 - 1e-4))
    soft = nn.Sequential(linear(1), nn.Softmax(-1))
    assert_close(adapted(soft, classes=[0, 1, 2], common=3)(RAW).exp(), soft(RAW))
    tokens = adapted(nn.Identity(), classes=[0, 1], common=3, kind="logits")(torch.zeros(2, 5, 2))
    assert tokens.shape == (2, 5, 3)


def test_members_with_other_classes_can_be_averaged_and_exported(tmp_path):
    common = ["ant", "bee", "cat", "dog"]
    members = [
        adapted(linear(0, outputs=2), mean=300.0, std=20.0, classes=["ant", "cat"], common=common),
        adapted(linear(1, outputs=3), classes=["cat", "dog", "bee"], common=common),
    ]
    pooled = alloykit.ensemble(members)
    expected = (members[0](RAW).exp() + members[1](RAW).exp()) / 2
    assert_close(pooled(RAW).exp(), expected)
    save_exported(pooled, tmp_path / "both.pt2", RAW)
    assert_close(load_exported(tmp_path / "both.pt2")(RAW[:3]), pooled(RAW[:3]), rtol=0, atol=1e-6)


def test_resized_members_can_be_exported(tmp_path):
    member = adapted(nn.Sequential(nn.Flatten(), linear(0, 16)), size=4, mean=0.5, std=0.2)
    images = torch.rand(3, 1, 8, 8)
    save_exported(alloykit.ensemble([member, member]), tmp_path / "small.pt2", images)
    loaded = load_exported(tmp_path / "small.pt2")
    assert_close(loaded(images[:2]), member(images[:2]).log_softmax(-1), rtol=0, atol=1e-6)


def test_predicting_gives_what_calling_gives():
    member = adapted(linear(0), mean=[300.0] * 4, std=[20.0] * 4)
    assert_close(predict(member, as_examples((RAW, torch.zeros(9)), "test")), member(RAW))


def test_all_mistakes_are_listed_at_once():
    with pytest.raises(InvalidParameter) as caught:
        adapted(nn.Identity(), classes=["dgo", "cat", "cat"], common=["cat", "dog", "dog"])
    text = str(caught.value)
    for part in (
        "'dgo' is not among the common classes. Did you mean 'dog'?",
        "'cat' is repeated in 'classes'",
        "'dog' is repeated in 'common'",
    ):
        assert part in text
    with pytest.raises(InvalidParameter) as caught:
        adapted(nn.Identity(), mean=[0.0, math.nan, 1.0], std=[1.0, 0.0])
    text = str(caught.value)
    for part in ("mean: 1 NaN", "std[1] is 0", "mean has the shape [3], and std [2]"):
        assert part in text


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"classes": [0]}, "'classes' needs 'common'"),
        ({"common": [0]}, "'common' needs 'classes'"),
        ({"classes": [0], "common": 2, "kind": "values"}, "has no classes"),
        ({"classes": [], "common": 2}, "'classes' is empty"),
        ({"classes": [0], "common": 2, "absent_mass": 1.0}, r"must lie in \[0, 1\). Got 1.0"),
    ],
)
def test_mistakes_are_refused(parameters, text):
    with pytest.raises(InvalidParameter, match=text):
        adapted(nn.Identity(), **parameters)


def test_what_does_not_fit_is_said_when_it_runs():
    with pytest.raises(DataError, match=r"shape \[3\] does not fit examples of the shape \[4\]"):
        Adapted(nn.Identity(), mean=[0.0, 1.0, 2.0])(RAW)
    with pytest.raises(DataError, match="gives 3 outputs, and 2 classes were named"):
        adapted(linear(0), classes=[0, 1], common=4)(RAW)


def test_running_a_member_does_not_change_how_it_is_adapted():
    one, other = (adapted(nn.Identity(), classes=[1, 0], common=2) for _ in range(2))
    one(torch.zeros(1, 2))
    assert one.adaptation() == other.adaptation()
    assert one.adaptation() != adapted(nn.Identity(), classes=[0, 1], common=2).adaptation()
