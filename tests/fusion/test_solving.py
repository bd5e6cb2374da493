from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from torch.nn import functional as F
from torch.testing import assert_close

from alloykit.errors import AlloyError
from alloykit.fusion import solving
from alloykit.fusion.parting import folds, held_out
from alloykit.fusion.solving import (
    GRADIENT,
    cross_validated,
    penalised_log_loss,
    ridge,
    softmax_regression,
    with_ones,
)


def problem(rows=80, columns=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    design = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    anchor = torch.randn(classes, columns + 1, generator=generator, dtype=torch.float64)
    return design, (design[:, :classes] + noise).argmax(1), anchor


def written_out(weights, design, labels, anchor, pull):
    scores = design @ weights[:, :-1].T + weights[:, -1]
    distance = (weights - anchor).square().sum()
    return F.cross_entropy(scores, labels) + pull / (2 * len(labels)) * distance


def test_the_loss_and_its_gradient_are_those_of_autograd():
    design, labels, anchor = problem()
    weights = (anchor * 0.3 + 0.1).requires_grad_()
    expected = written_out(weights, design, labels, anchor, 2.0)
    (slope,) = torch.autograd.grad(expected, weights)
    loss, gradient = penalised_log_loss(
        weights.detach(), with_ones(design), labels, anchor, pull=2.0
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    assert_close(gradient, slope, rtol=1e-10, atol=1e-12)


def test_softmax_regression_is_solved_to_its_certificate():
    design, labels, anchor = problem()
    found = softmax_regression(design, labels, anchor, 3.0)
    weights = found.weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(written_out(weights, design, labels, anchor, 3.0), weights)
    assert found.gradient <= GRADIENT
    assert float(slope.abs().max()) == pytest.approx(found.gradient, rel=1e-3, abs=1e-10)


def test_softmax_regression_is_that_of_scikit_learn():
    design, labels, anchor = problem()
    found = softmax_regression(design, labels, torch.zeros_like(anchor), 2.0)
    peer = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=10_000)
    peer.fit(with_ones(design).numpy(), labels.numpy())
    assert_close(found.weights, torch.from_numpy(peer.coef_), rtol=0, atol=2e-4)


def test_a_strong_pull_keeps_the_anchor_and_a_weak_one_leaves_it():
    design, labels, anchor = problem()
    near = softmax_regression(design, labels, anchor, 1e6).weights
    far = softmax_regression(design, labels, anchor, 1.0).weights
    assert float((near - anchor).abs().max()) < 1e-3 < float((far - anchor).abs().max())


def test_softmax_regression_says_when_it_was_not_solved():
    design, labels, anchor = problem()
    with pytest.raises(AlloyError, match=r"not solved: the gradient stayed at .* feed='standard'"):
        softmax_regression(design * 1e9, labels, anchor, 1e-9)


def test_ridge_is_that_of_scikit_learn():
    design, _, anchor = problem()
    targets = design @ anchor[:, :-1].T + 1
    found = ridge(design, targets, torch.zeros_like(anchor), 4.0)
    peer = Ridge(alpha=4.0, fit_intercept=False).fit(with_ones(design).numpy(), targets.numpy())
    assert_close(found.weights, torch.from_numpy(peer.coef_), rtol=1e-8, atol=1e-10)
    assert found.gradient < 1e-10


def test_ridge_is_pulled_to_its_anchor():
    design, _, anchor = problem()
    targets = with_ones(design) @ anchor.T
    assert_close(ridge(design, targets, anchor, 50.0).weights, anchor)


def test_cross_validation_scores_rows_that_were_not_solved_on():
    design, labels, anchor = problem(rows=60)
    zero = torch.zeros_like(anchor)
    found = cross_validated(
        softmax_regression, design, labels, zero, (1.0, 10.0), task="classification", seed=4
    )
    fold = folds(labels, 5, 4)
    for pull, reached in found.items():
        total = 0.0
        for number in range(5):
            inside, apart = (fold != number).numpy(), (fold == number).numpy()
            peer = LogisticRegression(C=1 / pull, fit_intercept=False, tol=1e-8, max_iter=10_000)
            peer.fit(with_ones(design).numpy()[inside], labels.numpy()[inside])
            said = peer.predict_proba(with_ones(design).numpy()[apart])
            total += log_loss(labels.numpy()[apart], said, labels=[0, 1, 2]) * apart.sum()
        assert reached == pytest.approx(total / 60, abs=2e-3)


def test_cross_validation_starts_each_pull_from_the_last_one():
    design, labels, anchor = problem()
    starts = []

    def solve(*given, start=None, tolerance):
        starts.append((given[3], start is None))
        return softmax_regression(*given, start=start, tolerance=tolerance)

    cross_validated(solve, design, labels, anchor, (1.0, 30.0), task="classification", seed=0)
    assert starts == [(30.0, True), (1.0, False)] * 5


def test_folds_share_out_every_class():
    labels = torch.tensor([0] * 10 + [1] * 25 + [2] * 3)
    fold = folds(labels, 5, 0)
    counts = np.array(
        [[int(((fold == f) & (labels == c)).sum()) for c in range(3)] for f in range(5)]
    )
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(1)) <= 1


def test_folds_are_of_the_seed_alone():
    labels = torch.arange(40) % 3
    before = torch.get_rng_state()
    assert torch.equal(folds(labels, 5, 1), folds(labels, 5, 1))
    assert not torch.equal(folds(labels, 5, 1), folds(labels, 5, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_fewer_rows_than_folds_make_as_many_folds_as_rows():
    assert sorted(folds(torch.tensor([0, 1, 1]), 5, 0).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("rows", [2, 3, 5, 40])
def test_one_row_in_five_is_held_out_and_never_all(rows):
    inside, apart = held_out(torch.arange(rows) % 2, 0)
    assert sorted([*inside.tolist(), *apart.tolist()]) == list(range(rows))
    assert len(apart) == max(1, rows // 5)


def test_solvers_take_any_precision_and_leave_the_columns_alone():
    design, labels, anchor = problem()
    single = design.float()
    kept = single.clone()
    found = softmax_regression(single, labels, anchor.float(), 1.0).weights
    assert found.dtype == torch.float64
    assert torch.equal(single, kept)
    assert solving.ROUGH > GRADIENT
