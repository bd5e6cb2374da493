"""Ours against torch.optim.swa_utils, bit for bit where both keep the average in float32."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from alloykit import ExponentialMovingAverage, LastKAverage, StochasticWeightAverage
from alloykit.evaluation.batch_norm import update_batch_norm
from alloykit.training.averages import RunningAverage

STEPS = 20


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)
    ).to(dtype)


def steps(net: nn.Module, count: int = STEPS):
    """Real optimizer steps; yields after each."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-2)
    dtype = next(net.parameters()).dtype
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.randn(8, 1, 8, 8, dtype=dtype)).square().mean().backward()
        optimizer.step()
        yield


def same_bits(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype, name
        assert torch.equal(mine[name], theirs[name]), name


PAIRS: list[tuple[Callable[..., RunningAverage], Callable]] = [
    (StochasticWeightAverage, get_swa_multi_avg_fn),
    *(
        (
            lambda net, decay=decay, **options: ExponentialMovingAverage(net, decay, **options),
            lambda decay=decay: get_ema_multi_avg_fn(decay),
        )
        for decay in (0.0, 0.3, 0.9, 0.999)
    ),
]
IDS = ["swa", "ema 0", "ema 0.3", "ema 0.9", "ema 0.999"]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_equal_to_the_averaged_model_bit_for_bit(ours, theirs, buffers):
    net = network()
    if buffers == "average":
        # torch averages the integer counter too, or fails on it; ours stays the model's.
        net[1].num_batches_tracked = None
    average = ours(net, buffers=buffers)
    expected = AveragedModel(net, multi_avg_fn=theirs(), use_buffers=buffers == "average")
    for _ in steps(net):
        average.update()
        expected.update_parameters(net)
    same_bits(average.module(), expected.module)


def test_the_counter_of_batch_norm_is_never_averaged():
    net = network()
    average = StochasticWeightAverage(net, buffers="average")
    for _ in steps(net):
        average.update()
    assert average.module()[1].num_batches_tracked.item() == STEPS


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
@pytest.mark.parametrize("cut", [0, 1, 13])
def test_equal_after_a_restart_in_the_middle(ours, theirs, cut):
    net = network()
    average = ours(net)
    expected = AveragedModel(net, multi_avg_fn=theirs())
    for step, _ in enumerate(steps(net)):
        if step == cut:
            file = io.BytesIO()
            torch.save(average.state_dict(), file)
            file.seek(0)
            average = ours(net)
            average.load_state_dict(torch.load(file, weights_only=True))
        average.update()
        expected.update_parameters(net)
    assert average.updates == int(expected.n_averaged) == STEPS
    same_bits(average.module(), expected.module)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
def test_training_goes_the_same_way_with_and_without(ours, theirs):
    alone, watched = network(), network()
    for _ in steps(alone):
        pass
    average = ours(watched)
    for _ in steps(watched):
        average.update()
    same_bits(alone, watched)
    assert all(p.grad is not None for p in watched.parameters())


@pytest.mark.parametrize("kind", [StochasticWeightAverage, ExponentialMovingAverage])
def test_bfloat16_models_are_nearer_to_the_float32_average_than_torchs(kind):
    net = network(torch.bfloat16)
    exact, options = [], ({"decay": 0.99} if kind is ExponentialMovingAverage else {})
    average = kind(net, **options)
    rule = get_ema_multi_avg_fn(0.99) if options else get_swa_multi_avg_fn()
    theirs = AveragedModel(net, multi_avg_fn=rule)
    for _ in steps(net):
        average.update()
        theirs.update_parameters(net)
        exact.append(net[4].weight.detach().double())
    mean = exact[0]
    for count, tensor in enumerate(exact[1:], start=1):
        mean = mean + (tensor - mean) * (0.01 if options else 1 / (count + 1))
    ours, torchs = average.module()[4].weight.double(), theirs.module[4].weight.double()
    step = 2.0**-8 * mean.abs() + 1e-6
    assert ((ours - mean).abs() <= step).all(), "more than one rounding"
    assert (ours - mean).abs().sum() < 0.5 * (torchs - mean).abs().sum()


@pytest.mark.parametrize("k", [1, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_last_k_is_the_mean_of_the_last_k(k, dtype):
    net = network(dtype)
    average, snapshots = LastKAverage(net, k), []
    for _ in steps(net):
        average.update()
        snapshots.append({name: p.detach().double() for name, p in net.named_parameters()})
    for name, parameter in average.module().named_parameters():
        mean: Tensor = torch.stack([s[name] for s in snapshots[-k:]]).mean(0)
        rounding = {"rtol": 2.0**-8, "atol": 1e-6} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(
            parameter.double(), mean, **(rounding or {"rtol": 1e-6, "atol": 1e-7})
        )


def test_batch_norm_is_re_estimated_as_torch_does():
    net = network()
    average = StochasticWeightAverage(net)
    expected = AveragedModel(net, multi_avg_fn=get_swa_multi_avg_fn())
    for _ in steps(net):
        average.update()
        expected.update_parameters(net)
    data = [(torch.randn(16, 1, 8, 8), torch.zeros(16)) for _ in range(3)]
    torch.optim.swa_utils.update_bn(data, expected)
    result = average.module()
    assert update_batch_norm(result, data) == 1
    torch.testing.assert_close(result[1].running_mean, expected.module[1].running_mean)
    torch.testing.assert_close(result[1].running_var, expected.module[1].running_var)
