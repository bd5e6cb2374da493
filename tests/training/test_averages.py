from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

import alloykit
from alloykit.errors import CheckpointError, InvalidParameter, MissingInput
from alloykit.training.averages import (
    ExponentialMovingAverage,
    LastKAverage,
    RunningAverage,
    StochasticWeightAverage,
)

KINDS = [
    pytest.param(lambda model, **o: ExponentialMovingAverage(model, 0.5, **o), id="ema"),
    pytest.param(StochasticWeightAverage, id="swa"),
    pytest.param(lambda model, **o: LastKAverage(model, 3, **o), id="last-k"),
]


def scalar(value: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = nn.Linear(1, 1, bias=False).to(dtype)
    return put(net, value)


def put(net: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


def value_of(net: nn.Module) -> float:
    return next(net.parameters()).flatten()[0].item()


def run(average: RunningAverage, values) -> float:
    for value in values:
        put(average.model, value)
        average.update()
    return value_of(average.module())


def through_a_file(average: RunningAverage) -> dict:
    buffer = io.BytesIO()
    torch.save(average.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("decay", "expected"), [(0.0, 4.0), (0.5, 0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 4), (0.9, 1.39)]
)
def test_ema_follows_its_formula(decay, expected):
    ema = ExponentialMovingAverage(scalar(), decay)
    assert run(ema, [1.0, 2.0, 4.0]) == pytest.approx(expected)


def test_swa_is_the_plain_mean():
    assert run(StochasticWeightAverage(scalar()), [1.0, 2.0, 4.0, 9.0]) == pytest.approx(4.0)


@pytest.mark.parametrize(("k", "expected"), [(1, 9.0), (2, 6.5), (4, 4.0), (50, 4.0)])
def test_last_k_forgets_what_is_older_and_takes_what_there_is(k, expected):
    assert run(LastKAverage(scalar(), k), [1.0, 2.0, 4.0, 9.0]) == pytest.approx(expected)


def test_warm_up_starts_with_the_present_weights_and_ends_with_the_decay():
    ema = ExponentialMovingAverage(scalar(), 0.9, warmup=True)
    assert ema.decay_at(0) == 0.0
    assert ema.decay_at(7) == pytest.approx(1 - 8 ** (-2 / 3))
    assert ema.decay_at(10**9) == 0.9
    assert [ema.decay_at(t) for t in range(50)] == sorted(ema.decay_at(t) for t in range(50))
    slower = ExponentialMovingAverage(scalar(), 0.9, warmup=True, gamma=10.0)
    assert slower.decay_at(7) < ema.decay_at(7)
    assert run(ema, [1.0, 2.0]) == pytest.approx(1.0 + (1 - (1 - 2 ** (-2 / 3))) * 1.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: ExponentialMovingAverage(m, 1.0), r"'decay' of an EMA .* \[0, 1\)\. Got 1\.0"),
        (lambda m: ExponentialMovingAverage(m, -0.1), r"'decay'"),
        (lambda m: ExponentialMovingAverage(m, math.nan), r"'decay'"),
        (lambda m: ExponentialMovingAverage(m, gamma=0.0), r"'gamma' and 'power'"),
        (lambda m: ExponentialMovingAverage(m, power=math.nan), r"'gamma' and 'power'"),
        (lambda m: ExponentialMovingAverage(m, buffers="mean"), r"'copy' or 'average'"),
        (lambda m: LastKAverage(m, 0), r"'k' must be a whole number of at least 1\. Got 0"),
        (lambda m: LastKAverage(m, 2.5), r"'k'"),
    ],
)
def test_numbers_outside_their_range(make, says):
    with pytest.raises(InvalidParameter, match=says):
        make(scalar())


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_update_there_is_no_average(kind):
    average = kind(scalar())
    for use in (average.module, lambda: average.copy_to(scalar())):
        with pytest.raises(MissingInput, match="call update"):
            use()
    with pytest.raises(MissingInput), average.applied():
        pass
    assert value_of(average.model) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_not_the_models_memory(kind):
    net = scalar(3.0)
    average = kind(net)
    average.update()
    put(net, 5.0)
    one = average.module()
    assert value_of(one) == 3.0
    put(one, 7.0)
    assert value_of(average.module()) == 3.0
    assert value_of(net) == 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_state_and_a_full_one_are_restored(kind):
    values = [1.0, 2.5, -3.0, 0.1, 7.7]
    straight = run(kind(scalar()), values)
    for cut in range(len(values)):
        before = kind(scalar())
        for value in values[:cut]:
            put(before.model, value)
            before.update()
        after = kind(scalar())
        after.load_state_dict(through_a_file(before))
        assert after.updates == cut
        assert run(after, values[cut:]) == straight


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_a_copy(kind):
    average = kind(scalar())
    run(average, [1.0, 2.0])
    state, before = average.state_dict(), value_of(average.module())
    restored = kind(scalar())
    restored.load_state_dict(state)
    run(average, [50.0])
    for tensors in state["averages"]:
        for tensor in tensors.values():
            tensor.fill_(99.0)
    assert value_of(restored.module()) == before


def test_settings_are_part_of_the_state():
    ema = ExponentialMovingAverage(scalar(), 0.3, warmup=True, gamma=2.0, power=0.75)
    ema.update()
    other = ExponentialMovingAverage(scalar())
    other.load_state_dict(through_a_file(ema))
    assert (other.decay, other.warmup, other.gamma, other.power) == (0.3, True, 2.0, 0.75)
    last = LastKAverage(scalar(), 2)
    run(last, [1.0, 2.0, 3.0])
    wider = LastKAverage(scalar(), 9)
    wider.load_state_dict(through_a_file(last))
    assert wider.k == 2
    assert run(wider, [4.0]) == 3.5


def test_a_state_of_another_sort_or_another_model_is_refused():
    ema = ExponentialMovingAverage(nn.Linear(2, 2))
    ema.update()
    with pytest.raises(
        CheckpointError, match="'ExponentialMovingAverage' and cannot be loaded int"
    ):
        StochasticWeightAverage(nn.Linear(2, 2)).load_state_dict(ema.state_dict())
    with pytest.raises(CheckpointError, match="of a None"):
        ema.load_state_dict(nn.Linear(2, 2).state_dict())
    other = ExponentialMovingAverage(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(3, 2)))
    with pytest.raises(CheckpointError) as caught:
        other.load_state_dict(ema.state_dict())
    for line in (
        "another model: 5 differences",
        "0.weight   model: [2, 2]   state: missing",
        "bias   model: missing   state: [2]",
    ):
        assert line in str(caught.value)
    assert other.updates == 0


def test_a_state_with_other_buffers_is_refused():
    one = StochasticWeightAverage(nn.BatchNorm1d(2), buffers="average")
    one.update()
    with pytest.raises(CheckpointError, match=r"buffers='average', and this .* buffers='copy'"):
        StochasticWeightAverage(nn.BatchNorm1d(2)).load_state_dict(one.state_dict())


def test_the_average_fits_a_model_of_the_same_architecture_alone():
    ema = ExponentialMovingAverage(nn.Linear(2, 2))
    ema.update()
    with pytest.raises(CheckpointError, match=r"weight   trained: \[2, 2\]   given: \[2, 3\]"):
        ema.copy_to(nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match=r"0\.bias   trained: missing   given: \[2\]"):
        ema.copy_to(nn.Sequential(nn.Linear(2, 2)))
    fresh = nn.Linear(2, 2).double()
    ema.copy_to(fresh)
    assert torch.equal(fresh.weight, ema.model.weight.double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_have_an_average_in_float32(kind, dtype):
    """Steps below the format's resolution are lost by an average that is kept in it."""
    average = kind(scalar(dtype=dtype))
    for value in [1.0] * 3:
        put(average.model, value)
        average.update()
    for tensors in average.state_dict()["averages"]:
        expected = dtype if isinstance(average, LastKAverage) else torch.float32
        assert {tensor.dtype for tensor in tensors.values()} == {expected}
    assert next(average.module().parameters()).dtype == dtype


def test_small_steps_are_not_lost_in_bfloat16():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    net = scalar(1.0, torch.bfloat16)
    ours = ExponentialMovingAverage(net, 0.999)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    ours.update()
    theirs.update_parameters(net)
    put(net, 2.0)
    for _ in range(1000):
        ours.update()
        theirs.update_parameters(net)
    exact = 2.0 - 0.999**1000
    assert value_of(ours.module()) == pytest.approx(exact, rel=2**-8)
    assert value_of(theirs) == 1.0  # rounded back at every step


def test_float64_models_are_averaged_in_float64():
    average = StochasticWeightAverage(scalar(dtype=torch.float64))
    values = [1.0, 2.0, 4.0 + 1e-13]
    assert run(average, values) == pytest.approx(sum(values) / 3, rel=1e-15)


def test_complex_parameters_are_averaged():
    net = nn.Module()
    net.w = nn.Parameter(torch.tensor([1 + 1j]))
    ema = ExponentialMovingAverage(net, 0.5)
    ema.update()
    with torch.no_grad():
        net.w.fill_(3 - 1j)
    ema.update()
    assert ema.module().w.item() == 2 + 0j


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.head.weight = self.embed.weight
        self.shared = nn.ModuleList([self.embed])
        self.norm = nn.BatchNorm1d(2)
        self.small = nn.Parameter(torch.ones(1, dtype=torch.float16))
        self.codes = nn.Parameter(torch.tensor([1, 2], dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False]))


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tensor(kind, buffers):
    net = Mixed()
    average = kind(net, buffers=buffers)
    for step in range(3):
        with torch.no_grad():
            net.embed.weight.fill_(float(step))
            net.small.fill_(step)
            net.scratch.fill_(float(step))
            net.codes.fill_(100 + step)
            net.norm.num_batches_tracked.fill_(10 * step)
        average.update()
    result = average.module()
    mean = {"ExponentialMovingAverage": 1.25}.get(type(average).__name__, 1.0)
    assert value_of(result.embed) == mean
    assert result.head.weight is result.embed.weight is result.shared[0].weight
    assert (result.small.item(), result.small.dtype) == (mean, torch.float16)
    assert result.codes.tolist() == [102, 102]
    assert result.norm.num_batches_tracked.item() == 20
    assert result.mask.tolist() == [True, False]
    assert result.scratch.tolist() == ([2.0, 2.0] if buffers == "copy" else [mean, mean])
    again = kind(Mixed(), buffers=buffers)
    again.load_state_dict(through_a_file(average))
    assert value_of(again.module().embed) == mean


@pytest.mark.parametrize("kind", KINDS)
def test_applied_gives_the_weights_back_even_after_an_error(kind):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = kind(net)
    average.update()
    with torch.no_grad():
        net[0].weight.fill_(5.0)
    before = copy.deepcopy(net.state_dict())
    with average.applied() as used:
        assert used is net
        assert not torch.equal(net[0].weight, before["0.weight"])
        net.train()(torch.randn(4, 2))
    with pytest.raises(ZeroDivisionError), average.applied():
        1 / 0  # noqa: B018
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    assert average.updates == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_a_wrapped_model_fits_the_model_inside(kind):
    net = nn.Linear(2, 2)
    wrapped = nn.DataParallel(net)
    average = kind(wrapped)
    average.update()
    fresh = nn.Linear(2, 2)
    average.copy_to(fresh)
    assert torch.equal(fresh.weight, net.weight)
    assert torch.equal(average.module().module.weight, net.weight)
    plain = kind(nn.Linear(2, 2))
    plain.load_state_dict(average.state_dict())
    assert torch.equal(plain.module().weight, net.weight)


def test_parametrised_models_are_averaged_in_their_own_parameters():
    net = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    ema = ExponentialMovingAverage(net, 0.5)
    ema.update()
    inputs = torch.ones(1, 2)
    torch.testing.assert_close(ema.module()(inputs), net(inputs))


def test_one_line_in_a_plain_loop_leaves_training_as_it_was():
    def train(with_average: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        ema = alloykit.ExponentialMovingAverage(net, decay=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()
            if with_average:
                ema.update()
        return net.state_dict()

    plain, averaged = train(False), train(True)
    assert all(torch.equal(plain[name], averaged[name]) for name in plain)
