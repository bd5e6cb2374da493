from __future__ import annotations

import builtins
import importlib

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.linear_model import ElasticNet, LogisticRegression, PoissonRegressor, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from alloykit.errors import CheckpointError, DataError, InvalidParameter, MissingExtra, MissingInput
from alloykit.fusion.head import HeadData, HeadShape
from alloykit.fusion.stacked import StackedEstimator, StackedLinear
from alloykit.fusion.stacking import stacking

MEMBERS = 3


class Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose probabilities are columns of X."""

    def __init__(self, place=0, classes=3):
        self.place, self.classes = place, classes
        self.classes_ = np.arange(classes)
        self.n_features_in_ = MEMBERS * classes

    def fit(self, columns, targets):
        return self

    def predict_proba(self, columns):
        return columns[:, self.place * self.classes : (self.place + 1) * self.classes]


class GivenValue(RegressorMixin, BaseEstimator):
    def __init__(self, place=0):
        self.place, self.fitted_ = place, True
        self.n_features_in_ = MEMBERS

    def fit(self, columns, targets):
        return self

    def predict(self, columns):
        return columns[:, self.place]


def classes(count=3, rows=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    said = (2 * torch.randn(MEMBERS, rows, count, generator=generator)).log_softmax(-1)
    labels = (said.mean(0) + torch.randn(rows, count, generator=generator)).argmax(1)
    labels[:count] = torch.arange(count)
    data = HeadData(tuple(said), labels)
    return data, HeadShape((count,) * MEMBERS, count, "classification")


def values(rows=80):
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(MEMBERS, rows, 1, generator=generator)
    targets = said[0] + 0.3 * said[1] + 0.1 * torch.randn(rows, 1, generator=generator)
    return HeadData(tuple(said), targets), HeadShape((1,) * MEMBERS, 1, "regression")


def said_by(fitted, data):
    with torch.no_grad():
        return fitted.module(data.members).numpy()


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    "final",
    [
        LogisticRegression(C=0.7, max_iter=1000),
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
        KNeighborsClassifier(7),
    ],
    ids=lambda final: type(final).__name__,
)
def test_stacking_equals_scikit_learns_stacking_classifier(count, final):
    data, shape = classes(count)
    columns = torch.cat(data.members, 1).double().exp().numpy()
    peer = StackingClassifier(
        [(str(m), Given(m, count)) for m in range(MEMBERS)], final_estimator=final, cv="prefit"
    ).fit(columns, data.targets.numpy())
    said = np.exp(said_by(stacking(final).fit(data, shape), data))
    np.testing.assert_allclose(said, peer.predict_proba(columns), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "final", [Ridge(0.5), ElasticNet(0.01), DecisionTreeRegressor(max_depth=3)]
)
def test_stacking_equals_scikit_learns_stacking_regressor(final):
    data, shape = values()
    columns = torch.cat(data.members, 1).double().numpy()
    if getattr(final, "random_state", 0) is None:
        final = final.set_params(random_state=0)
    peer = StackingRegressor(
        [(str(m), GivenValue(m)) for m in range(MEMBERS)], final_estimator=final, cv="prefit"
    ).fit(columns, data.targets[:, 0].numpy())
    said = said_by(stacking(final).fit(data, shape), data)
    np.testing.assert_allclose(said[:, 0], peer.predict(columns), rtol=0, atol=1e-6)


def test_stacking_over_features_equals_logistic_regression_on_them():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(100, 4, generator=generator)
    labels = (columns[:, 0] + columns[:, 3] > 0).long() + (columns[:, 1] > 1).long()
    data = HeadData((columns[:, :1], columns[:, 1:]), labels)
    shape = HeadShape((1, 3), 3, "classification", source="features")
    said = np.exp(said_by(stacking().fit(data, shape), data))
    peer = LogisticRegression().fit(columns.double().numpy(), labels.numpy())
    np.testing.assert_allclose(
        said, peer.predict_proba(columns.double().numpy()), rtol=0, atol=1e-6
    )


def test_several_values_at_once():
    data, _ = values()
    twice = HeadData(data.members, torch.cat([data.targets, -data.targets], 1))
    shape = HeadShape((1,) * MEMBERS, 2, "regression")
    for name in ("sklearn.linear_model:LinearRegression", "sklearn.tree:DecisionTreeRegressor"):
        said = said_by(stacking(name).fit(twice, shape), data)
        np.testing.assert_allclose(said[:, 0], -said[:, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "task", "module"),
    [
        (LogisticRegression(), "classification", StackedLinear),
        (LinearDiscriminantAnalysis(), "classification", StackedLinear),
        (KNeighborsClassifier(), "classification", StackedEstimator),
        (make_pipeline(StandardScaler(), LogisticRegression()), "classification", StackedEstimator),
        (Ridge(), "regression", StackedLinear),
        # Linear inside an exponential: its coefficients alone are not what it predicts.
        (PoissonRegressor(), "regression", StackedEstimator),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, BaseEstimator) else None,
)
def test_linear_estimators_become_torch_layers(estimator, task, module):
    _, shape = values() if task == "regression" else classes()
    assert type(stacking(estimator).build(shape)) is module


def test_a_class_that_the_targets_do_not_show_gets_probability_zero():
    data, shape = classes(4)
    labels = torch.where(data.targets == 1, 0, data.targets)
    for estimator in ("sklearn.linear_model:LogisticRegression", "sklearn.naive_bayes:GaussianNB"):
        said = said_by(stacking(estimator).fit(HeadData(data.members, labels), shape), data)
        assert np.isfinite(said).all()
        assert np.exp(said[:, 1]).max() < 1e-30
        np.testing.assert_allclose(np.exp(said).sum(1), 1, atol=1e-5)


def test_an_estimator_outside_torch_says_that_it_cannot_be_exported():
    data, shape = classes()
    module = stacking(KNeighborsClassifier()).fit(data, shape).module
    with pytest.raises(CheckpointError, match="KNeighborsClassifier cannot be exported"):
        torch.export.export(module, (data.members,))


def test_the_estimator_travels_in_the_state_dict():
    data, shape = classes()
    head = stacking(KNeighborsClassifier(3))
    fitted = head.fit(data, shape)
    again = head.build(shape)
    with pytest.raises(MissingInput, match="not been fitted"):
        again(data.members)
    again.load_state_dict(fitted.module.state_dict())
    assert torch.equal(again(data.members), fitted.module(data.members))


def test_the_instance_is_cloned_and_known_by_its_class_and_parameters():
    data, shape = classes()
    final = LogisticRegression(C=0.3)
    head = stacking(final)
    head.fit(data, shape)
    assert not hasattr(final, "coef_")
    assert head.parameters["estimator"].endswith(":LogisticRegression")
    assert head.parameters["parameters"]["C"] == 0.3
    again = stacking(**head.parameters)
    np.testing.assert_array_equal(
        said_by(again.fit(data, shape), data), said_by(head.fit(data, shape), data)
    )


def test_random_states_are_the_seed_wherever_they_are_left_open():
    data, shape = classes()
    path = "sklearn.ensemble:RandomForestClassifier"
    first, same, other = (
        said_by(stacking(path, {"n_estimators": 3}, seed=seed).fit(data, shape), data)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (("sklearn.svm:LinearSVC",), InvalidParameter, "has no predict_proba"),
        (("sklearn.linear_model:LogisticRegresion",), DataError, "Did you mean"),
        (("sklearn.linear_model",), DataError, "is not an import path"),
        (("math:pi",), InvalidParameter, "not a class of scikit-learn"),
        (
            ("sklearn.linear_model:LogisticRegression", {"c": 1}),
            InvalidParameter,
            "It takes: .*max_iter",
        ),
    ],
)
def test_estimators_that_cannot_be_used(given, error, text):
    data, shape = classes()
    with pytest.raises(error, match=text):
        stacking(*given).fit(data, shape)


def test_instances_are_checked_at_once():
    with pytest.raises(InvalidParameter, match="for import paths, not for instances"):
        stacking(LogisticRegression(), {"C": 1})
    with pytest.raises(InvalidParameter, match="neither a path nor an instance"):
        stacking(LogisticRegression)
    with pytest.raises(InvalidParameter, match="'feed' of stacking"):
        stacking(feed="root")


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    _, shape = classes()
    head = stacking()

    def missing(name, *rest):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name=name)
        return builtins.__import__(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"alloykit\[demo\]"):
        head.build(shape)
