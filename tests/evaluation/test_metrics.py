import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloykit.errors import DataError, InvalidParameter, UnknownName
from alloykit.evaluation.metrics import METRICS, for_task, metric


def sample(n=200, classes=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    outputs = torch.log_softmax(2 * torch.randn(n, classes, generator=g), 1)
    return outputs, torch.randint(0, classes - 1, (n,), generator=g)


LOGS, Y = sample()
P = LOGS.double().exp().numpy()
HARD = P.argmax(1)
G = torch.Generator().manual_seed(1)
T = torch.randn(200, 3, generator=G)
V = T + 0.5 * torch.randn(200, 3, generator=G)

EXPECTED = {
    "accuracy": sk.accuracy_score(Y, HARD),
    "precision": sk.precision_score(Y, HARD, average="macro", zero_division=0),
    "recall": sk.recall_score(Y, HARD, average="macro", zero_division=0),
    "f1": sk.f1_score(Y, HARD, average="macro", zero_division=0),
    "log_loss": sk.log_loss(Y, P / P.sum(1, keepdims=True), labels=range(5)),
    "perplexity": math.exp(sk.log_loss(Y, P / P.sum(1, keepdims=True), labels=range(5))),
    "brier": ((P - np.eye(5)[Y]) ** 2).sum(1).mean(),
    "auroc": np.mean([sk.roc_auc_score(c == Y, P[:, c]) for c in range(4)]),
    "r2": sk.r2_score(T, V),
    "mae": sk.mean_absolute_error(T, V),
    "mse": sk.mean_squared_error(T, V),
    "rmse": math.sqrt(sk.mean_squared_error(T, V)),
}


def pair(name):
    return (V, T) if "regression" in METRICS[name].tasks else (LOGS, Y)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_values_equal_scikit_learn(name):
    assert METRICS[name].value(*pair(name)) == pytest.approx(EXPECTED[name], rel=1e-5)


def test_every_metric_has_an_independent_expectation():
    assert set(METRICS) == {*EXPECTED, "ece"}


def test_expected_calibration_error_by_hand():
    # Honest labels, so that the gaps of the bins have both signs and the bins matter.
    honest = torch.multinomial(LOGS.exp(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    sure, right = P.max(1), honest.numpy() == HARD
    total = 0.0
    for b in range(15):
        inside = (sure >= b / 15) & (sure < (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert METRICS["ece"].value(LOGS, honest) == pytest.approx(total, rel=1e-5)


def test_a_confidence_of_exactly_one_is_a_bin_of_its_own():
    outputs = torch.tensor([[1.0, 0.0], [0.99, 0.01]]).log()
    targets = torch.tensor([1, 0])
    assert METRICS["ece"].value(outputs, targets) == pytest.approx((1 + 0.01) / 2, rel=1e-5)
    assert from_sums(METRICS["ece"], outputs, targets) == pytest.approx((1 + 0.01) / 2, rel=1e-5)


def from_sums(entry, outputs, targets):
    contributions = entry.contributions(outputs, targets)
    assert contributions.shape[0] == len(targets)
    return float(entry.finish(np.asarray(contributions.sum(0)).reshape(1, -1))[0])


DECOMPOSED = [name for name, entry in METRICS.items() if entry.contributions is not None]


def test_all_but_auroc_are_functions_of_sums():
    assert set(METRICS) - set(DECOMPOSED) == {"auroc"}


@pytest.mark.parametrize("name", DECOMPOSED)
@pytest.mark.parametrize("case", ["many", "certain", "one class", "two examples"])
def test_finished_sums_equal_the_value(name, case):
    outputs, targets = pair(name)
    if case == "certain" and targets.dim() == 1:
        outputs = torch.log(torch.eye(5)[outputs.argmax(1)])
    elif case == "certain":
        outputs = targets.clone()
    elif case == "one class":
        targets = torch.full_like(targets, 2)
    elif case == "two examples":
        outputs, targets = outputs[:2], targets[:2]
    entry = METRICS[name]
    expected = entry.value(outputs, targets)
    assert from_sums(entry, outputs, targets) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(2, 6), st.integers(0, 10_000))
def test_finished_sums_equal_the_value_on_any_data(n, classes, seed):
    outputs, targets = sample(n, classes, seed)
    for name in DECOMPOSED:
        if "classification" in METRICS[name].tasks:
            expected = METRICS[name].value(outputs, targets)
            found = from_sums(METRICS[name], outputs, targets)
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def tokens():
    outputs = LOGS.reshape(20, 10, 5)
    targets = Y.reshape(20, 10).clone()
    targets[::3, 4:] = -100
    return outputs, targets


@pytest.mark.parametrize("name", [m.name for m in for_task("tokens")])
def test_tokens_score_as_their_scored_positions(name):
    outputs, targets = tokens()
    kept = targets.flatten() != -100
    expected = METRICS[name].value(LOGS[kept], targets.flatten()[kept])
    assert METRICS[name].value(outputs, targets) == pytest.approx(expected, rel=1e-6)
    assert from_sums(METRICS[name], outputs, targets) == pytest.approx(expected, rel=1e-5)


def test_a_hard_vote_has_a_finite_log_loss_that_of_scikit_learn():
    p = np.eye(3)[[0, 1, 2, 0]]
    outputs = torch.from_numpy(p).float().log()
    targets = torch.tensor([0, 1, 2, 1])
    expected = sk.log_loss(targets, p, labels=range(3))
    assert METRICS["log_loss"].value(outputs, targets) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(36.0437 / 4, rel=1e-5)


def test_a_probability_of_slightly_more_than_one_is_not_put_through_a_softmax():
    outputs = torch.tensor([[1e-6, -14.0], [-14.0, 1e-6]])
    targets = torch.tensor([0, 1])
    assert METRICS["auroc"].value(outputs, targets) == 1.0
    assert METRICS["ece"].value(outputs, targets) == pytest.approx(0, abs=1e-5)


def test_auroc_of_one_class_is_nan():
    assert math.isnan(METRICS["auroc"].value(LOGS, torch.zeros_like(Y)))


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e6])
def test_r2_does_not_depend_on_the_scale_or_the_offset(scale):
    outputs, targets = V.double() * scale + 7 * scale, T.double() * scale + 7 * scale
    found = METRICS["r2"].value(outputs, targets)
    assert found == pytest.approx(sk.r2_score(T, V), rel=1e-6)
    assert from_sums(METRICS["r2"], outputs, targets) == pytest.approx(found, rel=1e-6)


def test_r2_of_constant_targets_is_that_of_scikit_learn():
    targets = torch.full((4,), 3.0)
    for outputs, expected in ((targets, 1.0), (targets + 0.001, 0.0)):
        assert sk.r2_score(targets, outputs) == expected
        assert METRICS["r2"].value(outputs, targets) == expected
        assert from_sums(METRICS["r2"], outputs, targets) == expected
    with pytest.raises(DataError, match="needs 2 examples"):
        METRICS["r2"].value(targets[:1], targets[:1])


@pytest.mark.parametrize("name", ["r2", "mae", "mse", "rmse"])
def test_single_values_are_not_broadcast_into_a_matrix(name):
    outputs, targets = V[:, 0], T[:, 0]
    expected = METRICS[name].value(outputs, targets)
    assert METRICS[name].value(outputs[:, None], targets) == expected
    assert METRICS[name].value(outputs, targets[:, None]) == expected
    with pytest.raises(DataError, match=r"\[200, 3\] do not fit targets of the shape \[200\]"):
        METRICS[name].value(V, targets)


@pytest.mark.parametrize(
    ("outputs", "targets", "text"),
    [
        (LOGS, Y[:9], r"\[200, 5\] do not fit targets of the shape \[9\]"),
        (LOGS, Y + 2, "targets must be 0 to 4"),
        (LOGS, Y - 1, "The targets reach from -1 to 2"),
        (LOGS, Y.float(), "give one class number per row"),
        (LOGS[:0], Y[:0], "nothing to score"),
        (LOGS[None], torch.full((1, 200), -100), "nothing to score"),
    ],
)
def test_targets_that_do_not_fit_are_refused(outputs, targets, text):
    with pytest.raises(DataError, match=text):
        METRICS["accuracy"].value(outputs, targets)


def test_metrics_by_name():
    assert metric("accuracy") is METRICS["accuracy"]
    assert metric(METRICS["f1"]) is METRICS["f1"]
    assert metric("rmse", task="regression").higher_is_better is False
    with pytest.raises(UnknownName, match=r"no metric 'acuracy'. Did you mean 'accuracy'"):
        metric("acuracy")
    with pytest.raises(InvalidParameter, match=r"'r2' does not fit tokens. Those that do: acc"):
        metric("r2", task="tokens")
    assert {m.name for m in for_task("regression")} == {"r2", "mae", "rmse", "mse"}
    better = {name for name, entry in METRICS.items() if entry.higher_is_better}
    assert better == {"accuracy", "precision", "recall", "f1", "auroc", "r2"}


def test_metrics_of_your_own():
    def worst(outputs, targets):
        """The largest loss."""
        return -outputs.gather(1, targets[:, None]).min()

    own = metric(worst, higher_is_better=False)
    assert (own.name, own.summary) == ("worst", "The largest loss.")
    assert own.value(LOGS, Y) == pytest.approx(float(-LOGS[range(200), Y].min()))
    assert own.loss(2.0) == 2.0
    assert metric("accuracy").loss(2.0) == -2.0
    with pytest.raises(InvalidParameter, match="Which way is better for the metric 'worst'"):
        metric(worst)
    with pytest.raises(InvalidParameter, match="Got a int"):
        metric(5, higher_is_better=True)


def test_every_metric_is_summarised():
    assert all(entry.summary.endswith(".") for entry in METRICS.values())
