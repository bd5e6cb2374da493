from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import alloykit
import digits_samples as digits
from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.data.examples import as_examples
from alloykit.errors import InvalidParameter
from alloykit.evaluation.metrics import metric
from alloykit.soups.judge import Judge
from alloykit.soups.learned import learned
from alloykit.soups.uniform import uniform

NORMS = pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])


@NORMS
@pytest.mark.parametrize("measure", ["accuracy", "log_loss"])
def test_it_is_never_worse_on_validation_than_the_plain_average(batch_norm, measure):
    members, judge = digits.checkpoints(batch_norm), digits.judge(batch_norm, measure)
    choice, plain = learned(epochs=3)(members, judge), uniform()(members, judge)
    better = choice.value >= plain.value if measure == "accuracy" else choice.value <= plain.value
    assert better
    assert choice.trials[0]["weights"] == pytest.approx([0.2] * 5)
    assert choice.trials[0][measure] == pytest.approx(plain.value)
    if measure == "log_loss":
        assert choice.value < plain.value
        assert choice.weights[-1] < 0.15, "the bad member kept its weight"
        assert min(trial[measure] for trial in choice.trials) == choice.value


@NORMS
def test_members_and_the_judges_module_are_not_changed(batch_norm):
    members = digits.checkpoints(batch_norm)
    before = [content_digest(member) for member in members]
    learned(epochs=1)(members, digits.judge(batch_norm))
    assert [content_digest(member) for member in members] == before
    assert all(
        p.grad is None for net in digits.members(batch_norm).values() for p in net.parameters()
    )


def test_weights_lie_on_the_simplex_and_trials_are_fit_for_json():
    choice = learned(epochs=2, learning_rate=5.0)(digits.checkpoints(), digits.judge())
    assert len(choice.trials) == 3
    for trial in choice.trials:
        assert math.fsum(trial["weights"]) == pytest.approx(1.0)
        assert all(weight >= 0 for weight in trial["weights"])
    assert json.loads(json.dumps(choice.trials)) == list(choice.trials)


def test_the_same_twice_and_the_global_random_state_is_left_alone():
    members, judges = digits.checkpoints(), [digits.judge(), digits.judge()]
    before = torch.get_rng_state()
    first, second = (learned(epochs=1)(members, judge) for judge in judges)
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def judge_of(net: nn.Module, inputs, targets, task="classification", **options) -> Judge:
    examples = as_examples((inputs, targets), "validation", **options)
    name = {"classification": "log_loss", "regression": "mse", "tokens": "log_loss"}[task]
    return Judge(net, examples, metric(name), task)


def toward(net: nn.Module, judge: Judge, good: float, bad: float) -> tuple[float, float]:
    """Learn between a copy of every parameter times ``good`` and one times ``bad``."""
    states = [
        {n: t * f if t.is_floating_point() else t for n, t in net.state_dict().items()}
        for f in (good, bad)
    ]
    members = [MemoryCheckpoint(state, id=f"m{i}") for i, state in enumerate(states)]
    choice = learned(epochs=15, learning_rate=0.3)(members, judge)
    assert choice.value <= choice.trials[0][judge.metric.name]
    return choice.weights


INPUTS = torch.linspace(-2, 2, 24)[:, None]
BINARY = (INPUTS[:, 0] > 0).long()


class Single(nn.Module):
    def __init__(self, activation: nn.Module, squeeze: bool) -> None:
        super().__init__()
        self.layer, self.activation, self.squeeze = nn.Linear(1, 1), activation, squeeze
        with torch.no_grad():
            self.layer.weight.fill_(3.0)
            self.layer.bias.zero_()

    def forward(self, x):
        out = self.activation(self.layer(x))
        return out[:, 0] if self.squeeze else out


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("activation", [nn.Identity(), nn.Sigmoid()], ids=["logit", "probability"])
def test_binary_classifiers_with_one_output(activation, squeeze):
    net = Single(activation, squeeze)
    good, bad = toward(net, judge_of(net, INPUTS, BINARY), 1.0, -1.0)
    assert good > 0.9 > bad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_every_precision(dtype):
    net = Single(nn.Identity(), False).to(dtype)
    good, bad = toward(net, judge_of(net, INPUTS, BINARY), 1.0, -1.0)
    assert good > 0.9 > bad


def test_regression_with_several_outputs():
    net = nn.Linear(1, 2)
    targets = net(INPUTS).detach()
    good, bad = toward(net, judge_of(net, INPUTS, targets, "regression"), 1.0, -1.0)
    assert good > 0.9 > bad


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(5, 8), nn.Linear(8, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("position_ids", torch.arange(4))

    def forward(self, tokens):
        return {"logits": self.head(self.embed(tokens))}


def test_tied_language_models_that_give_a_mapping():
    net = Tied()
    tokens = torch.randint(0, 5, (12, 4), generator=torch.Generator().manual_seed(0))
    good, bad = toward(net, judge_of(net, tokens, tokens, "tokens"), 1.0, 0.0)
    assert good > bad


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_models(wrap):
    nets = [wrap(net) for net in list(digits.members(True).values())[:2]]
    for method in ("learned", "greedy"):
        result = alloykit.soup(nets, method, validation=digits.splits()["validation"])
        assert type(result.model) is type(nets[0])


def test_a_loss_that_is_not_finite_ends_the_learning():
    net = nn.Linear(1, 1, bias=False)
    states = [{"weight": torch.tensor([[size]])} for size in (1e25, 3e25)]
    members = [MemoryCheckpoint(state, id=f"m{i}") for i, state in enumerate(states)]
    choice = learned(epochs=2)(members, judge_of(net, INPUTS, INPUTS, "regression"))
    assert choice.weights == pytest.approx([0.5, 0.5])
    assert len(choice.trials) == 1


@pytest.mark.parametrize("options", [{"epochs": 0}, {"learning_rate": 0.0}, {"learning_rate": -1}])
def test_numbers_outside_their_range(options):
    with pytest.raises(InvalidParameter, match="'epochs' of at least 1 and a positive"):
        learned(**options)
