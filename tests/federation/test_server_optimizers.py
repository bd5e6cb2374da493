"""An optimizer's step on the server: composed with other aggregators, and kept from round to round."""

from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter, UnknownName
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.contract import Given
from alloykit.federation.fedadam import fedadam
from alloykit.federation.fedavgm import fedavgm
from alloykit.federation.server_optimizers import aggregator_of, longer_steps, momentum_step
from alloykit.federation.update import Update
from alloykit.registry import aggregators

OPTIMIZERS = ("fedavgm", "fedadagrad", "fedyogi", "fedadam")


def given(server, combined, slots=None, round_=1):
    tensors = (
        torch.tensor(server, dtype=torch.float64),
        torch.tensor(combined, dtype=torch.float64),
    )
    return Given("w", *tensors, slots or {}, round=round_, clients=3, numbers={})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_that_does_not_change_stays(name: str):
    moment = torch.zeros(2, dtype=torch.float64)
    step = aggregators.build(name).step
    result, slots = step.change(given([1.0, -2.0], [1.0, -2.0], {"first_moment": moment}))
    torch.testing.assert_close(
        result, torch.tensor([1.0, -2.0], dtype=torch.float64), rtol=0, atol=0
    )
    assert all(not slot.any() for slot in slots.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_keep_float32_and_leave_their_input_alone(name: str):
    server, combined = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.5])
    step = aggregators.build(name).step
    first = Given("w", server, combined, {}, 1, 3, {})
    result, slots = step.change(first)
    again, _ = step.change(Given("w", server, combined, slots, 2, 3, {}))
    assert result.dtype == again.dtype == torch.float32
    assert {slot.dtype for slot in slots.values()} == {torch.float32}
    assert server.tolist() == [1.0, 2.0]
    assert combined.tolist() == [2.0, 1.5]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_statistics_and_whole_numbers_are_only_averaged(name: str):
    server = {
        "w": torch.zeros(1),
        "bn.running_var": torch.ones(1),
        "bn.num_batches_tracked": torch.tensor(3),
    }
    sent = [
        {
            "w": torch.tensor([1.0]),
            "bn.running_var": torch.tensor([v]),
            "bn.num_batches_tracked": torch.tensor(n),
        }
        for v, n in ((0.25, 5), (0.75, 9))
    ]
    made = aggregate_updates(
        server,
        [Update("a", sent[0]), Update("b", sent[1])],
        aggregators.build(name, server_learning_rate=0.5),
    )
    assert made.tensors["bn.running_var"].item() == 0.5
    assert made.tensors["bn.num_batches_tracked"].item() == 9
    assert made.tensors["bn.num_batches_tracked"].dtype == torch.int64
    assert made.tensors["w"].dtype == torch.float32
    assert all(list(slot) == ["w"] for slot in made.state.tensors.values())


def test_of_names_any_aggregator_with_its_parameters():
    made = fedavgm({"method": "norm_clipping", "max_norm": 2.0}, server_momentum=0.0)
    assert made.needs == "sum"
    assert made.asks == {"num_examples", "norm", "server"}
    assert made.parameters["of"] == {"method": "norm_clipping", "max_norm": 2.0}
    assert fedadam("median").needs == "blocks"
    assert fedadam("median").asks == {"server"}


def test_a_wrong_of_says_what_is_wrong():
    with pytest.raises(UnknownName, match="Did you mean 'fedavg'"):
        fedadam("fedvag")
    with pytest.raises(InvalidParameter, match=r"a mapping such as \{'method': 'krum'"):
        aggregator_of({"name": "krum"})
    with pytest.raises(InvalidParameter, match="krum has no parameter 'f'"):
        aggregator_of({"method": "krum", "f": 1})


def test_noise_comes_before_the_step_and_reaches_statistics():
    private = {"method": "dp_fixed_clipping", "clip_norm": 1.0, "noise_multiplier": 1.0, "seed": 5}
    server = {"w": torch.zeros(4), "bn.running_mean": torch.zeros(4)}
    updates = [Update(name, {n: t + 0.1 for n, t in server.items()}) for name in "ab"]
    plain = aggregate_updates(server, updates, aggregator_of(private)).tensors
    made = aggregate_updates(server, updates, fedavgm(private, server_learning_rate=0.5)).tensors
    torch.testing.assert_close(made["w"], 0.5 * plain["w"])
    torch.testing.assert_close(made["bn.running_mean"], plain["bn.running_mean"])
    assert plain["w"].std() > 0.05


def test_two_optimizers_on_top_of_each_other_keep_slots_of_their_own():
    made = fedavgm({"method": "fedavgm", "server_momentum": 0.5}, server_momentum=0.5)
    result, slots = made.step.change(given([0.0], [1.0]))
    assert set(slots) == {"first_moment", "of.first_moment"}
    turned = {
        "of.first_moment": slots["of.first_moment"],
        "first_moment": slots["first_moment"] * 9,
    }
    assert made.step.change(given([0.0], [1.0], turned))[1]["of.first_moment"].item() == 1.5
    result, slots = made.step.change(given([0.0], [1.0], slots, round_=2))
    # Inner: 1, then 0.5 · 1 + 1; outer: 1, then 0.5 · 1 + 1.5.
    assert slots["of.first_moment"].item() == 1.5
    assert result.item() == 2.0


def test_longer_steps_are_none_where_the_step_is_whole():
    assert longer_steps(1.0) is None
    result, slots = longer_steps(2.0).change(given([1.0], [1.5]))
    assert (result.item(), slots) == (2.0, {})


def test_momentum_of_three_rounds_by_hand():
    slots, seen = {}, []
    for change in (1.0, 2.0, -1.0):
        result, slots = momentum_step(given([10.0], [10.0 + change], slots), 0.5, 0.8)
        seen.append(result.item())
    # m = 1, 2.8, 1.24
    assert seen == pytest.approx([10.5, 11.4, 10.62])
