from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import digits_samples as digits
from alloykit.data.examples import as_examples
from alloykit.errors import CheckpointError
from alloykit.evaluation.metrics import metric
from alloykit.soups.judge import Judge, as_logits


def test_scores_turn_losses_around():
    state = digits.members()["start"].state_dict()
    loss, accuracy = digits.judge(False, "log_loss"), digits.judge(False, "accuracy")
    assert loss.score(state) == -loss.value(state) < 0
    assert accuracy.score(state) == accuracy.value(state) > 0


def test_the_module_given_is_never_changed():
    net = digits.network(True).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    validation = as_examples(digits.splits()["validation"], "validation")
    judge = Judge(net, validation, metric("accuracy"), "classification", batch_norm=validation)
    judge.value(digits.members(True)["start"].state_dict())
    list(judge.losses(digits.members(True)["start"].state_dict()))
    assert net.training
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)


def test_states_are_not_changed_by_judging():
    state = digits.members(True)["start"].state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    judge = digits.judge(True)
    judge.value(state)
    list(judge.losses(state))
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_batch_norm_is_re_estimated_where_data_was_given_and_asked_for():
    state = digits.members(True)["start"].state_dict()
    broken = {n: torch.full_like(t, 50.0) if "running_mean" in n else t for n, t in state.items()}
    judge = digits.judge(True)
    assert judge.value(broken) == judge.value(state)
    assert judge.value(broken, reestimate=False) < 0.5 < judge.value(state, reestimate=False)


def test_a_state_of_another_architecture_is_refused():
    with pytest.raises(CheckpointError, match="does not fit Sequential"):
        digits.judge(True).value(digits.members(False)["start"].state_dict())


def test_losses_are_those_of_the_loaded_module():
    net = digits.members()["start"]
    inputs, targets = digits.splits()["validation"]
    losses = [float(loss.detach()) for loss in digits.judge().losses(net.state_dict())]
    with torch.no_grad():
        expected = [
            float(F.cross_entropy(net(x), y))
            for x, y in zip(inputs.split(256), targets.split(256), strict=True)
        ]
    assert losses == pytest.approx(expected)


def test_losses_have_gradients_to_the_state():
    state = {
        n: t.clone().requires_grad_() for n, t in digits.members()["start"].state_dict().items()
    }
    next(digits.judge().losses(state)).backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in state.values())


def test_what_outputs_mean_is_decided_once():
    """A single logit of an untrained average lies in [0, 1] and is no probability."""
    net = nn.Linear(1, 1, bias=False)
    inputs, targets = torch.tensor([[-3.0], [1.0], [3.0]]), torch.tensor([0, 1, 1])
    judge = Judge(net, as_examples((inputs, targets), "validation"), metric("log_loss"),
                  "classification")  # fmt: skip
    judge.value({"weight": torch.tensor([[2.0]])})
    zero = judge.value({"weight": torch.tensor([[0.0]])})
    assert zero == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_probabilities_become_logits_of_the_same_loss():
    probabilities = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    logits = as_logits(probabilities, "probabilities")
    torch.testing.assert_close(logits.softmax(-1), probabilities)
    single = torch.tensor([0.2, 0.9])
    torch.testing.assert_close(torch.sigmoid(as_logits(single, "probabilities")), single)
    assert as_logits(single, "logits") is single
