from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from alloykit.errors import DataError
from alloykit.training.losses import loss_of, task_loss
from alloykit.training.rows import Rows


def test_classification_is_cross_entropy():
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    expected = -(outputs.log_softmax(1)[:, 0]).mean()
    torch.testing.assert_close(task_loss(outputs, targets, "classification"), expected)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_the_one_logit_of_a_binary_classifier(shape):
    logits, targets = torch.tensor([2.0, -1.0, 0.0, 3.0]), torch.tensor([1, 0, 1, 0])
    expected = F.binary_cross_entropy_with_logits(logits, targets.float())
    torch.testing.assert_close(
        task_loss(logits.reshape(shape), targets, "classification"), expected
    )


def test_ignored_tokens_do_not_count():
    outputs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, -100, 2], [-100, -100, 4]])
    rows = outputs.log_softmax(-1)
    expected = -(rows[0, 0, 1] + rows[0, 2, 2] + rows[1, 2, 4]) / 3
    torch.testing.assert_close(task_loss(outputs, targets, "tokens"), expected)


@pytest.mark.parametrize(("outputs", "targets"), [((3, 1), (3,)), ((3,), (3, 1)), ((3, 2), (3, 2))])
def test_regression_is_squared_error_whatever_the_trailing_dimension(outputs, targets):
    given, wanted = torch.arange(6.0)[: 3 if 1 in outputs or outputs == (3,) else 6], 1.0
    values = given.reshape(outputs)
    loss = task_loss(values, torch.full(targets, wanted), "regression")
    torch.testing.assert_close(loss, (given - wanted).square().mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_loss_is_in_float32_or_what_is_wider(task, dtype):
    outputs = torch.ones(2, 3, dtype=dtype)
    targets = torch.tensor([0, 2]) if task == "classification" else torch.zeros(2, 3)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert task_loss(outputs, targets, task).dtype == expected


def test_nothing_to_score_is_a_loss_of_zero_with_gradients_of_zero():
    outputs = torch.ones(1, 2, 3, requires_grad=True)
    loss = task_loss(outputs, torch.full((1, 2), -100), "tokens")
    loss.backward()
    assert loss == 0.0
    assert outputs.grad.abs().sum() == 0


def test_the_loss_of_a_batch():
    part = Rows(torch.eye(2), torch.tensor([0, 0])).part(torch.tensor([0, 1]))
    expected = task_loss(torch.eye(2), torch.tensor([0, 0]), "classification")
    assert loss_of("classification")(torch.nn.Identity(), part) == expected
    bare = Rows(torch.eye(2)).part(torch.tensor([0]))
    with pytest.raises(DataError, match="compares with targets, and the training data has none"):
        loss_of("tokens")(torch.nn.Identity(), bare)
