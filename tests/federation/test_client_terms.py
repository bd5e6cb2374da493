"""Terms of a client's loss, and the numbers that it sends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.federation.client_terms import (
    control_change,
    correction,
    counted_steps,
    normalised_steps,
    proximal,
    trained,
)
from alloykit.training.settings import Training


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    net[0].bias.requires_grad_(False)
    return net


def test_only_what_is_trained():
    assert list(trained(model())) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]


def test_the_proximal_term_and_its_gradient():
    net = model()
    server = {name: tensor + 0.5 for name, tensor in net.state_dict().items()}
    term = proximal(net, server, mu=0.4)
    count = sum(tensor.numel() for tensor in trained(net).values())
    assert term.item() == pytest.approx(0.2 * 0.25 * count)
    term.backward()
    assert net[0].bias.grad is None
    torch.testing.assert_close(net[2].weight.grad, torch.full((1, 3), -0.2, dtype=torch.float64))


def test_the_correction_turns_a_step_of_sgd_by_control_less_own():
    net = model()
    own = {name: torch.full_like(tensor, 0.25) for name, tensor in trained(net).items()}
    control = {"2.weight": torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)}
    correction(net, own, control).backward()
    torch.testing.assert_close(net[2].weight.grad, control["2.weight"] - 0.25)
    torch.testing.assert_close(net[2].bias.grad, torch.tensor([-0.25], dtype=torch.float64))
    assert correction(net, {}, {}).item() == 0.0


def test_names_that_do_not_fit_are_listed():
    with pytest.raises(
        MissingInput, match=r"not among the server's model, which has 1:\n  0.weight"
    ):
        proximal(model(), {"w": torch.zeros(1)}, 1.0)
    with pytest.raises(
        MissingInput, match=r"not among the trained parameters, which has 5:\n  0\.bias"
    ):
        correction(model(), {}, {"0.bias": torch.zeros(3)})
    with pytest.raises(MissingInput, match="not among what the client started from"):
        control_change({}, {"w": torch.zeros(1)}, {}, 1.0)
    with pytest.raises(InvalidParameter, match="'path' parameter of control_change"):
        control_change({}, {}, {}, 0.0)
    with pytest.raises(InvalidParameter, match="'mu' parameter of proximal"):
        proximal(model(), {}, -1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_a_constant_gradient_the_new_control_is_that_gradient(momentum: float):
    net = nn.Linear(2, 1, bias=False).double()
    begun = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    gradient = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    for _ in range(7):
        optimizer.zero_grad()
        (net.weight * gradient).sum().backward()
        optimizer.step()
    path = 0.1 * counted_steps([1.0] * 7, momentum=momentum)
    ended = {"weight": net.weight.detach()}
    change = control_change(
        begun, ended, {"weight": torch.full((1, 2), 0.5, dtype=torch.float64)}, path
    )
    torch.testing.assert_close(change["weight"], gradient - 0.5)


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.9), (5, 0.0), (12, 0.5), (40, 0.9)])
def test_steps_with_momentum_are_the_papers(steps: int, momentum: float):
    expected = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    assert counted_steps([1.0] * steps, momentum) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("steps", "proximal_"), [(1, 0.1), (5, 0.01), (12, 0.3)])
def test_steps_with_a_proximal_term_are_the_papers(steps: int, proximal_: float):
    expected = (1 - (1 - proximal_) ** steps) / proximal_
    assert counted_steps([1.0] * steps, proximal=proximal_) == pytest.approx(expected, rel=1e-12)


def test_steps_with_everything_are_what_training_does():
    training = Training(optimizer="sgd", learning_rate=0.2, momentum=0.5, schedule="linear")
    net, start = nn.Linear(1, 1, bias=False).double(), 1.0
    nn.init.constant_(net.weight, start)
    server = {"weight": net.weight.detach().clone()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.5)
    for factor in (1.0, 0.75, 0.5, 0.25):
        optimizer.param_groups[0]["lr"] = 0.2 * factor
        optimizer.zero_grad()
        (net.weight.sum() * 3.0 + proximal(net, server, mu=0.4)).backward()
        optimizer.step()
    steps = normalised_steps(training, 4, mu=0.4)
    assert net.weight.item() == pytest.approx(start - 0.2 * steps * 3.0, rel=1e-12)
    with pytest.raises(InvalidParameter, match="'steps' parameter of normalised_steps"):
        normalised_steps(training, 0)
