"""The rules against scikit-learn, scipy and plain re-implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.testing import assert_close

from alloykit.ensembling.average import average
from alloykit.ensembling.greedy_selection import greedy_selection
from alloykit.ensembling.objectives import (
    brier_weights,
    log_loss_weights,
    log_pool_weights,
    squared_error_weights,
)
from alloykit.ensembling.per_class import penalised_loss, per_class, solved
from alloykit.ensembling.stack import true_class
from alloykit.ensembling.vote import vote
from alloykit.ensembling.weighted import weighted


class Told(ClassifierMixin, BaseEstimator):
    """A fitted classifier that answers row numbers with given probabilities."""

    def __init__(self, table):
        self.table = table
        self.classes_ = np.arange(table.shape[1])

    def predict_proba(self, rows):
        return self.table[rows[:, 0].astype(int)]

    def predict(self, rows):
        return self.predict_proba(rows).argmax(1)


def synthetic(members, examples, classes, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (examples,), generator=generator)
    shared = torch.randn(examples, classes, generator=generator)
    own = torch.randn(members, examples, classes, generator=generator)
    skill = torch.rand(members, 1, 1, generator=generator) * 2
    truth = torch.nn.functional.one_hot(targets, classes)
    return (scale * (skill * truth + 0.7 * shared + own)).log_softmax(-1), targets


def sklearn_voting(stack, voting, weights):
    tables = [member.exp().double().numpy() for member in stack]
    model = VotingClassifier([(str(i), Told(t)) for i, t in enumerate(tables)], voting=voting)
    model.estimators_ = [Told(table) for table in tables]
    model.weights = weights
    model.le_ = type("Same", (), {"inverse_transform": staticmethod(lambda x: x)})()
    model.classes_ = np.arange(stack.shape[2])
    return model, np.arange(stack.shape[1])[:, None]


@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.3]])
def test_average_of_probabilities_is_soft_voting(weights):
    stack, _ = synthetic(3, 200, 5)
    model, rows = sklearn_voting(stack, "soft", weights)
    rule = average() if weights is None else weighted(weights=weights)
    ours = rule.combine(stack, {}).exp().double()
    assert_close(ours, torch.from_numpy(model.predict_proba(rows)), rtol=0, atol=1e-6)
    assert ours.argmax(1).tolist() == model.predict(rows).tolist()


@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.4]])
def test_vote_is_hard_voting_except_where_votes_are_tied(weights):
    stack, _ = synthetic(3, 400, 5)
    model, rows = sklearn_voting(stack, "hard", weights)
    given = weights or [1.0, 1.0, 1.0]
    votes = np.zeros((400, 5))
    for member, weight in zip(stack, given, strict=True):
        votes[np.arange(400), member.argmax(1).numpy()] += weight
    tied = (np.isclose(votes, votes.max(1, keepdims=True))).sum(1) > 1
    ours = vote(weights=weights).combine(stack, {}).argmax(1).numpy()
    assert (ours == model.predict(rows))[~tied].all()
    assert not tied.all()
    if weights is None:
        probabilities = stack.exp().mean(0).numpy()
        best = np.where(np.isclose(votes, votes.max(1, keepdims=True)), probabilities, -1)
        assert tied.sum() > 20
        assert (ours == best.argmax(1))[tied].all()
        assert (ours != model.predict(rows))[tied].any()


def brute_force_greedy(probabilities, targets, rounds, loss):
    """Caruana's loop with nothing clever: lists of chosen members, everything recomputed."""
    chosen, history = [], []
    for _ in range(rounds):
        options = []
        for member in range(len(probabilities)):
            mean = np.mean([probabilities[m] for m in [*chosen, member]], axis=0)
            mean = mean / mean.sum(1, keepdims=True)
            nll = log_loss(targets, mean, labels=range(mean.shape[1]))
            options.append((round(loss(mean, targets), 6), member not in chosen, nll, member))
        best = min(options)
        chosen.append(best[3])
        history.append(best[0])
    size = int(np.argmin(history)) + 1
    counts = np.bincount(chosen[:size], minlength=len(probabilities))
    return counts / size


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_greedy_selection_is_the_brute_force_loop(seed, metric):
    stack, targets = synthetic(5, 60, 3, seed=seed)
    losses = {
        "accuracy": lambda p, y: -float((p.argmax(1) == y).mean()),
        "log_loss": lambda p, y: log_loss(y, p, labels=range(p.shape[1])),
    }
    expected = brute_force_greedy(stack.double().exp().numpy(), targets.numpy(), 12, losses[metric])
    ours = greedy_selection(metric, rounds=12).fit(stack, targets)["weights"]
    assert_close(ours, torch.from_numpy(expected), rtol=0, atol=1e-12)


def scipy_optimum(value, gradient, members):
    """The best of SLSQP and trust-constr from the centre."""
    simplex = {"constraints": {"type": "eq", "fun": lambda w: w.sum() - 1}}
    start, bounds = np.full(members, 1 / members), [(0, 1)] * members
    slsqp = minimize(
        value, start, jac=gradient, bounds=bounds, method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 2000}, **simplex,
    )  # fmt: skip
    interior = minimize(
        value, slsqp.x, jac=gradient, bounds=bounds, method="trust-constr",
        hess=lambda w: np.eye(members), options={"gtol": 1e-12, "maxiter": 200},
        constraints=LinearConstraint(np.ones(members), 1, 1),
    )  # fmt: skip
    feasible = [np.maximum(x, 0) / np.maximum(x, 0).sum() for x in (slsqp.x, interior.x)]
    return min(map(value, feasible))


@pytest.mark.filterwarnings("ignore:delta_grad == 0.0")
@pytest.mark.parametrize("seed", range(3))
def test_log_loss_weights_reach_scipys_optimum(seed):
    stack, targets = synthetic(6, 300, 4, seed=seed, scale=2.0)
    truth = true_class(stack, targets).double().exp().numpy().T
    best = scipy_optimum(
        lambda w: -np.log(np.maximum(truth @ w, 1e-300)).mean(),
        lambda w: -(truth / np.maximum(truth @ w, 1e-300)[:, None]).mean(0),
        6,
    )
    found = log_loss_weights(true_class(stack, targets))
    assert found.value <= best + 1e-8
    assert found.value >= best - 1e-6
    assert found.value == pytest.approx(-np.log(truth @ found.weights).mean(), abs=1e-12)
    certificate = (truth / (truth @ found.weights)[:, None]).mean(0).max() - 1
    assert certificate == pytest.approx(found.gap, abs=1e-12)
    assert certificate <= 1e-8


@pytest.mark.filterwarnings("ignore:delta_grad == 0.0")
def test_log_pool_weights_reach_scipys_optimum():
    stack, targets = synthetic(4, 200, 3, seed=3, scale=1.5)
    logs = stack.double().numpy()

    def pooled(weights):
        mixed = np.tensordot(weights, logs, 1)
        return mixed - np.log(np.exp(mixed).sum(1, keepdims=True))

    def gradient(weights):
        error = np.exp(pooled(weights))
        error[np.arange(200), targets] -= 1
        return (logs * error).sum((1, 2)) / 200

    def value(weights):
        return -pooled(weights)[np.arange(200), targets].mean()

    found = log_pool_weights(stack, targets)
    best = scipy_optimum(value, gradient, 4)
    assert found.value == pytest.approx(value(found.weights), abs=1e-12)
    assert best - 1e-6 <= found.value <= best + 1e-8


@pytest.mark.filterwarnings("ignore:delta_grad == 0.0")
def test_brier_and_squared_error_weights_reach_scipys_optimum():
    stack, targets = synthetic(5, 200, 3, seed=4)
    truth = torch.nn.functional.one_hot(targets, 3).double()
    errors = (stack.double().exp() - truth).numpy()

    def value(weights):
        return (np.tensordot(weights, errors, 1) ** 2).sum(1).mean()

    def gradient(weights):
        mixed = np.tensordot(weights, errors, 1)
        return 2 * (errors * mixed).sum((1, 2)) / 200

    best = scipy_optimum(value, gradient, 5)
    for found, per_row in (
        (brier_weights(stack, targets), 1),
        (squared_error_weights(stack.exp(), truth), 3),
    ):
        assert found.value * per_row == pytest.approx(value(found.weights), abs=1e-9)
        assert value(found.weights) <= best + 1e-8


def test_per_class_reaches_what_a_search_without_gradients_reaches():
    stack, targets = synthetic(2, 80, 2, seed=5)
    weights, bias, _ = solved(stack, targets, pull=1.0)
    ours = penalised_loss(torch.cat([weights.flatten(), bias]).numpy(), stack, targets, 1.0)[0]
    logs = stack.double()

    def loss(point):
        values = torch.from_numpy(point)
        mix, shift = values[:4].view(2, 2), values[4:]
        scores = (mix[:, None] * logs).sum(0) + shift
        penalty = ((mix - 0.5) ** 2).sum() + (shift**2).sum()
        return float(torch.nn.functional.cross_entropy(scores, targets) + penalty / (2 * 80))

    limits = {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-9, "fatol": 1e-13}
    other = minimize(loss, np.zeros(6), method="Nelder-Mead", options=limits)
    assert ours == pytest.approx(other.fun, abs=1e-8)


def test_per_class_with_little_pull_equals_logistic_regression_on_one_member():
    # One member and two classes: z1 - z0 = w1 log p1 - w0 log p0 + (b1 - b0) is logistic regression
    # on the two columns; scikit-learn's penalty differs, so both are given next to none.
    stack, targets = synthetic(1, 300, 2, seed=6)
    rule = per_class(pull=1e-5)
    ours = rule.combine(stack.double(), rule.fit(stack, targets)).exp()
    columns = stack[0].double().numpy()
    other = LogisticRegression(C=1e5, tol=1e-10, max_iter=5000).fit(columns, targets.numpy())
    assert_close(ours, torch.from_numpy(other.predict_proba(columns)), rtol=0, atol=2e-4)


def test_per_class_gradient_is_zero_by_automatic_differentiation():
    stack, targets = synthetic(3, 150, 4, seed=7, scale=2.0)
    weights, bias, gradient = solved(stack, targets, pull=1.0)
    weights.requires_grad_()
    bias.requires_grad_()
    scores = (weights[:, None] * stack.double()).sum(0) + bias
    penalty = (weights - 1 / 3).square().sum() + bias.square().sum()
    loss = torch.nn.functional.cross_entropy(scores, targets) + penalty / (2 * 150)
    loss.backward()
    largest = max(float(weights.grad.abs().max()), float(bias.grad.abs().max()))
    assert largest <= 1e-6
    assert largest == pytest.approx(gradient, abs=1e-9)


def test_the_optimum_beats_every_corner_and_every_midpoint():
    stack, targets = synthetic(4, 500, 3, seed=8)
    found = log_loss_weights(true_class(stack, targets))
    truth = true_class(stack, targets).double().exp().numpy().T
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(range(4), size) for size in (1, 2, 3, 4)
    ):
        corner = np.zeros(4)
        corner[list(chosen)] = 1 / len(chosen)
        assert found.value <= -np.log(truth @ corner).mean() + 1e-8
