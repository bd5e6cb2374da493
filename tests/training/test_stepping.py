from __future__ import annotations

import pytest
import torch
from torch import nn

from alloykit.errors import InvalidParameter
from alloykit.training.hardware import OneDevice, hardware
from alloykit.training.losses import loss_of
from alloykit.training.rows import Rows
from alloykit.training.settings import Training
from alloykit.training.stepping import add_gradients


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("sizes", [[8], [4, 4], [3, 3, 2], [1] * 8, [7, 1]])
@pytest.mark.parametrize("task", ["tokens", "classification", "regression"])
def test_batches_add_up_to_the_gradient_of_the_whole(task, sizes):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 5, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (8, 5), generator=generator)
    targets[torch.rand(8, 5, generator=generator) < 0.6] = -100
    targets[2] = -100  # a row of padding alone
    if task != "tokens":
        inputs = inputs[:, 0]
        targets = (
            targets[:, 0].clamp(min=0)
            if task == "classification"
            else inputs @ torch.ones(3, 4).double()
        )
    model = nn.Linear(3, 4).double()
    loss = loss_of(task)
    whole = loss(model, Rows(inputs, targets).part(torch.arange(8)))
    whole.backward()
    expected = [each.clone() for each in gradients(model)]
    machine = OneDevice(model, Training())
    assert gradients(model) == [None, None]
    order = torch.randperm(8, generator=generator)
    mean, scored = add_gradients(machine, model, Rows(inputs, targets), order.split(sizes), loss)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-12, atol=1e-14)
    assert mean == pytest.approx(float(whole.detach()), rel=1e-12)
    assert scored == (int((targets != -100).sum()) if task == "tokens" else 8)


class Pretend:
    """As much of an Accelerator as is looked at before anything happens."""

    def __init__(self, steps: int = 1, precision: str = "no") -> None:
        self.gradient_accumulation_steps, self.mixed_precision = steps, precision


def test_an_accelerator_that_contradicts_the_settings():
    model = nn.Linear(1, 1)
    with pytest.raises(
        InvalidParameter, match=r"accumulates 4 batches.*Training\(accumulate=\.\.\.\)"
    ):
        hardware(model, Training(), Pretend(4))
    with pytest.raises(
        InvalidParameter, match="computes in bfloat16, and precision='float16' asks"
    ):
        hardware(model, Training(precision="float16"), Pretend(1, "bf16"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_clipped_gradient_is_that_of_the_loss_and_not_of_its_scaled_form(precision):
    model = nn.Linear(3, 2)
    machine = OneDevice(model, Training(precision=precision))
    inputs = torch.ones(4, 3)
    with machine.autocast():
        loss = 0.1 * model(inputs).float().sum()  # its gradient has the norm 0.4 * sqrt(8)
    machine.backward(loss)
    machine.step(0.25, 0.5)
    first = [machine.optimizer.state[parameter]["exp_avg"] for parameter in model.parameters()]
    norm = torch.cat([each.flatten() for each in first]).norm()
    assert norm == pytest.approx(0.1 * 0.5, rel=1e-4)
    assert gradients(model) == [None, None]
    assert machine.optimizer.param_groups[0]["lr"] == 0.25
