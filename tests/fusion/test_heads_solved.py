"""The heads at an optimum: concat without hidden sizes, and log_pool."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from alloykit.ensembling.per_class import per_class
from alloykit.errors import InvalidParameter
from alloykit.fusion.concat import concat
from alloykit.fusion.head import HeadData, HeadShape
from alloykit.fusion.log_pool import log_pool


def outputs(seed=0, members=3, rows=90, classes=4, sharp=3.0):
    generator = torch.Generator().manual_seed(seed)
    drawn = sharp * torch.randn(members, rows, classes, generator=generator)
    labels = (drawn.mean(0) + torch.randn(rows, classes, generator=generator)).argmax(1)
    labels[:classes] = torch.arange(classes)
    members_said = tuple(drawn.log_softmax(-1))
    shape = HeadShape((classes,) * members, classes, "classification")
    return HeadData(members_said, labels), shape


def values(seed=0, members=3, rows=40, size=2, unit=1.0):
    generator = torch.Generator().manual_seed(seed)
    said = torch.randn(members, rows, size, generator=generator) * unit
    targets = said[0] * 0.7 + 0.2 * unit * torch.randn(rows, size, generator=generator) + unit
    return HeadData(tuple(said), targets), HeadShape((size,) * members, size, "regression")


def said_by(fitted, data):
    with torch.no_grad():
        return fitted.module(data.members, data.context)


def test_concat_is_at_the_minimum_of_the_loss_that_its_docstring_names():
    data, shape = outputs()
    fitted = concat(pull=3).fit(data, shape)
    weight = fitted.module.layers.weight.detach().double().requires_grad_()
    bias = fitted.module.layers.bias.detach().double().requires_grad_()
    columns = torch.cat(data.members, 1).double().clamp_min(-6)
    mean = torch.eye(4, dtype=torch.float64).repeat(1, 3) / 3
    distance = (weight - mean).square().sum() + bias.square().sum()
    loss = F.cross_entropy(columns @ weight.T + bias, data.targets) + 3 / (2 * 90) * distance
    slopes = torch.autograd.grad(loss, (weight, bias))
    assert max(float(slope.abs().max()) for slope in slopes) < 2e-6


def test_concat_under_a_strong_pull_is_the_mean_of_clipped_logarithms():
    data, shape = outputs(sharp=20.0)
    clipped = torch.stack(data.members).clamp_min(-6).mean(0).log_softmax(-1)
    assert_close(said_by(concat(pull=1e9).fit(data, shape), data), clipped, rtol=0, atol=1e-4)
    assert_close(concat().build(shape).eval()(data.members), clipped, rtol=0, atol=1e-5)


def test_concat_of_values_under_a_strong_pull_is_their_mean_in_any_unit():
    data, shape = values(unit=1e4)
    said = said_by(concat(pull=1e9).fit(data, shape), data)
    assert_close(said, torch.stack(data.members).mean(0), rtol=1e-4, atol=1)


def test_concat_of_values_does_not_depend_on_their_unit():
    small, shape = values(unit=1.0)
    large, _ = values(unit=1e4)
    first, second = (concat().fit(data, shape) for data in (small, large))
    assert first.chosen["pull"] == second.chosen["pull"]
    assert_close(said_by(first, small) * 1e4, said_by(second, large), rtol=1e-3, atol=1.0)


def test_concat_of_values_is_ridge_regression_around_the_mean():
    data, shape = values(size=1)
    targets = data.targets.double()
    mean, scale = targets.mean(), targets.std(correction=0)
    design = torch.cat([(m.double() - mean) / scale for m in data.members], 1)
    design = torch.cat([design, torch.ones(len(design), 1, dtype=torch.float64)], 1)
    anchor = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0], dtype=torch.float64)
    rest = ((targets - mean) / scale)[:, 0] - design @ anchor
    moved = torch.linalg.solve(
        design.T @ design + 5 * torch.eye(4, dtype=torch.float64), design.T @ rest
    )
    expected = design @ (anchor + moved) * scale + mean
    said = said_by(concat(pull=5).fit(data, shape), data)[:, 0]
    assert_close(said, expected.float(), rtol=1e-5, atol=1e-5)


def test_concat_chooses_the_pull_with_the_smallest_cross_validated_loss():
    fitted = concat().fit(*outputs())
    tried = fitted.chosen["loss_by_pull"]
    assert list(tried) == ["1", "3", "10", "30"]
    assert f"{fitted.chosen['pull']:g}" == min(tried, key=tried.get)


def test_concat_of_features_is_pulled_to_zero_on_standardised_columns():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(60, 3, generator=generator)
    labels = (columns[:, 0] > 0).long()
    shape = HeadShape((3,), 2, "classification", source="features")
    data = HeadData((columns,), labels)
    stretched = HeadData((columns * torch.tensor([1e3, 1e-3, 1.0]) + 7,), labels)
    first, second = (concat(pull=2).fit(given, shape) for given in (data, stretched))
    assert_close(said_by(first, data), said_by(second, stretched), rtol=0, atol=2e-3)
    # A pull this strong leaves nothing, and so an even chance.
    even = said_by(concat(pull=1e9).fit(data, shape), data)
    assert_close(even, torch.full((60, 2), -math.log(2)), rtol=0, atol=1e-4)


def test_a_constant_column_does_nothing():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(60, 2, generator=generator)
    labels = (columns[:, 0] > 0).long()
    with_it = torch.cat([columns, torch.full((60, 1), 1e6)], 1)
    narrow = HeadShape((2,), 2, "classification", source="features")
    wide = HeadShape((3,), 2, "classification", source="features")
    first = said_by(
        concat(pull=1).fit(HeadData((columns,), labels), narrow), HeadData((columns,), labels)
    )
    second = said_by(
        concat(pull=1).fit(HeadData((with_it,), labels), wide), HeadData((with_it,), labels)
    )
    assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", [concat(), concat(hidden=[4], epochs=3), log_pool()])
def test_logarithms_of_zero_leave_everything_finite(head):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    sure = torch.full((40, 4), -1e4)
    sure[torch.arange(40), torch.randint(4, (40,), generator=generator)] = 0.0
    right = torch.full((40, 4), -1e4)
    right[torch.arange(40), labels] = 0.0
    data = HeadData((sure, right), labels)
    said = said_by(head.fit(data, HeadShape((4, 4), 4, "classification")), data)
    assert bool(torch.isfinite(said).all())


@pytest.mark.parametrize("head", [concat(), log_pool()])
def test_a_class_without_examples_is_solved_and_stays_unlikely(head):
    data, shape = outputs(classes=4)
    labels = torch.where(data.targets == 3, 0, data.targets)
    said = said_by(head.fit(HeadData(data.members, labels), shape), data)
    assert float(said[:, 3].exp().mean()) < 0.1


@pytest.mark.parametrize("head", [concat(), log_pool(), concat(hidden=[3], epochs=2)])
def test_two_rows_are_enough_to_run(head):
    data, shape = outputs(rows=4, classes=2)
    few = HeadData(tuple(m[:2] for m in data.members), torch.tensor([0, 1]))
    assert said_by(head.fit(few, shape), few).shape == (2, 2)


def test_one_member_is_recalibrated():
    data, shape = outputs(members=1)
    for head in (concat(), log_pool()):
        said = said_by(head.fit(data, shape), data)
        before = F.nll_loss(data.members[0], data.targets)
        assert float(F.nll_loss(said, data.targets)) <= float(before)


def test_log_pool_is_the_rule_per_class_where_nothing_is_cut():
    data, shape = outputs(sharp=1.0)
    stack = torch.stack(data.members)
    state = per_class(pull=2.0).fit(stack, data.targets)
    fitted = log_pool(pull=2.0).fit(data, shape)
    assert_close(said_by(fitted, data), per_class().combine(stack, state), rtol=0, atol=1e-5)
    assert fitted.chosen["gradient"] <= 1e-6


def test_log_pool_hears_nothing_below_its_floor():
    data, shape = outputs(sharp=1.0)
    module = log_pool().fit(data, shape).module
    low, lower = (torch.tensor([[0.0, level, -1.0, -1.0]]) for level in (-15.0, -1e4))
    with torch.no_grad():
        assert torch.equal(module([low] * 3), module([lower] * 3))


def test_a_small_network_learns_what_no_sum_of_columns_expresses():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(400, 2, generator=generator)
    labels = (columns.prod(1) > 0).long()
    shape = HeadShape((1, 1), 2, "classification", source="features")
    data = HeadData((columns[:, :1], columns[:, 1:]), labels)
    linear = said_by(concat().fit(data, shape), data)
    network = concat(hidden=[32], learning_rate=2e-2, batch_size=32).fit(data, shape)
    assert (linear.argmax(1) == labels).float().mean() < 0.7
    assert (said_by(network, data).argmax(1) == labels).float().mean() > 0.93
    assert network.chosen["epochs"] >= 1
    assert {"number", "loss", "validation"} <= set(network.history[0])


def test_a_network_of_values_learns_in_any_unit():
    data, shape = values(unit=1e4, rows=200)
    mean = (torch.stack(data.members).mean(0) - data.targets).square().mean()
    fitted = concat(hidden=[32], learning_rate=1e-2).fit(data, shape)
    assert (said_by(fitted, data) - data.targets).square().mean() < 0.3 * mean


def test_every_mistake_in_concat_is_listed():
    with pytest.raises(InvalidParameter) as caught:
        concat(hidden=[0], activation="rely", dropout=1.0, feed="logs", pull=0)
    text = str(caught.value)
    assert (
        "'hidden' sizes of concat must be whole numbers of at least 1, as in [64, 32]. Got [0]."
        in text
    )
    assert "Did you mean 'log'?" in text
    for word in ("'activation'", "'dropout'", "'pull' of concat must be above 0. Got 0."):
        assert word in text


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"pull": float("nan")}, "must be above 0"),
        ({"pull": 1.0, "hidden": [4]}, "is for linear layers"),
        ({"dropout": 0.5}, "is for 'hidden' layers"),
        ({"hidden": [4], "epochs": 0}, "'epochs'"),
    ],
)
def test_concat_refuses(parameters, text):
    with pytest.raises(InvalidParameter, match=text):
        concat(**parameters)


@pytest.mark.parametrize("pull", [0.0, -1.0, float("inf")])
def test_log_pool_refuses_pulls_that_are_none(pull):
    with pytest.raises(InvalidParameter, match="above 0"):
        log_pool(pull=pull)
