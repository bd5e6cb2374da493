"""Any scikit-learn estimator over what the members give."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from alloykit.data.importing import import_object
from alloykit.errors import InvalidParameter, MissingExtra, did_you_mean, listing
from alloykit.fusion.contract import EVERY_TASK, Layer, fusion_head
from alloykit.fusion.feeding import FeedName, feed_mistakes
from alloykit.fusion.head import FittedHead, HeadData, HeadShape
from alloykit.fusion.stacked import StackedEstimator, StackedLinear

LOGISTIC, RIDGE = "sklearn.linear_model:LogisticRegression", "sklearn.linear_model:RidgeCV"
ITERATIONS = 10_000


@fusion_head(
    tasks=EVERY_TASK,
    formula="estimator([p₁; …; p_M])",
    paper="Wolpert, Stacked generalization, 1992.",
)
def stacking(
    estimator: Any = None,
    parameters: Mapping[str, Any] | None = None,
    feed: FeedName | None = None,
    seed: int = 0,
) -> Layer:
    """Fit any scikit-learn estimator on the members' outputs or features, side by side.

    p = estimator.predict_proba([p₁; …; p_M]), or estimator.predict for values

    Use it when scikit-learn has the model that you want in place of a linear layer (trees, kernels,
    nearest neighbours), or to reproduce a ``StackingClassifier``. Linear estimators become a torch
    layer, which can be exported; any other runs in scikit-learn, on the CPU, and cannot be.

    Args:
        estimator: Import path of a class ("sklearn.svm:SVC"), or an instance, which is cloned. It
            must have ``predict_proba`` for classes. None: what scikit-learn's stacking takes,
            LogisticRegression for classes and RidgeCV for values.
        parameters: What the class is called with; not for instances. LogisticRegression may
            take 10,000 iterations where none are given: scikit-learn's 100 often leave it unsolved.
        feed: "probabilities", "log", "sqrt" or "standard", as in ``concat``. None: what
            scikit-learn's stacking takes: probabilities (of two classes the second one only),
            values and features as they are.
        seed: Every ``random_state`` that is left at None.

    Shapes:
        member x [row, width] -> [row, output]

    Raises:
        InvalidParameter: No such estimator, parameters that it does not take, or one without
            ``predict_proba`` where there are classes.
        MissingExtra: scikit-learn is not installed.

    Example:
        >>> import torch
        >>> from alloykit.fusion.head import HeadData, HeadShape
        >>> members = torch.tensor([[[0.9, 0.1], [0.8, 0.2]], [[0.7, 0.3], [0.1, 0.9]]]).log()
        >>> data = HeadData(tuple(members), torch.tensor([0, 1]))
        >>> head = stacking("sklearn.neighbors:KNeighborsClassifier", {"n_neighbors": 1})
        >>> head.fit(data, HeadShape((2, 2), 2, "classification")).module(members).argmax(1)
        tensor([0, 1])

    References:
        Wolpert, Stacked generalization, 1992. Equal to scikit-learn's
        ``StackingClassifier(cv="prefit")`` and ``StackingRegressor(cv="prefit")`` with this final
        estimator, where these give the same columns. Classes that the targets do not show get
        probability zero; scikit-learn leaves their columns out.
    """
    wrong = feed_mistakes(feed, "stacking")
    given = dict(parameters or {})
    if estimator is not None and not isinstance(estimator, str):
        if given:
            wrong.append("The 'parameters' of stacking are for import paths, not for instances.")
        if not hasattr(estimator, "get_params") or isinstance(estimator, type):
            wrong.append(f"The 'estimator' is neither a path nor an instance. Got {estimator!r}.")
    if wrong:
        raise InvalidParameter(wrong[0] if len(wrong) == 1 else f"stacking:\n{listing(wrong)}")

    make = partial(_made, estimator, given, seed)

    def build(shape: HeadShape) -> StackedLinear | StackedEstimator:
        linear = _is_linear(make(shape), shape)
        return (StackedLinear if linear else StackedEstimator)(shape, feed).double()

    def fit(data: HeadData, shape: HeadShape) -> FittedHead:
        module, made = build(shape), make(shape)
        columns = module.columns.learn(data)([member.double() for member in data.members])
        targets = data.targets.numpy(force=True)
        flat = shape.task == "regression" and shape.outputs == 1
        made.fit(columns.numpy(force=True), targets[:, 0] if flat else targets)
        module.take(made)
        return FittedHead(module)

    return Layer(build, fit, parameters=_kept(estimator, given, feed, seed))


def _made(estimator: Any, parameters: Mapping[str, Any], seed: int, shape: HeadShape) -> Any:
    """A fresh, unfitted estimator, checked for what the head needs of it."""
    base = _sklearn("sklearn.base")
    if estimator is None:
        estimator = RIDGE if shape.task == "regression" else LOGISTIC
    if estimator == LOGISTIC:
        parameters = parameters or {"max_iter": ITERATIONS}
    named = isinstance(estimator, str)
    made = _called(estimator, parameters) if named else base.clone(estimator)
    if shape.task != "regression" and not hasattr(made, "predict_proba"):
        raise InvalidParameter(
            f"{type(made).__name__} has no predict_proba, and stacking needs probabilities. "
            "Give one that has, or wrap it in sklearn.calibration:CalibratedClassifierCV."
        )
    random = {
        name: seed
        for name, value in made.get_params().items()
        if name.split("__")[-1] == "random_state" and value is None
    }
    return made.set_params(**random)


def _called(path: str, parameters: Mapping[str, Any]) -> Any:
    kind = import_object(path)
    if not (isinstance(kind, type) and hasattr(kind, "get_params") and hasattr(kind, "fit")):
        raise InvalidParameter(f"The 'estimator' {path} is not a class of scikit-learn estimators.")
    try:
        return kind(**parameters)
    except TypeError as error:
        known = list(kind().get_params(deep=False))
        odd = [name for name in parameters if name not in known]
        hint = did_you_mean(odd[0], known) if odd else ""
        raise InvalidParameter(
            f"The 'parameters' of stacking do not fit {path}: {error}.{hint} "
            f"It takes: {', '.join(known)}."
        ) from None


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise MissingExtra(
            "The head stacking needs scikit-learn, which is not installed. "
            "Install it with: pip install 'alloykit[demo]'"
        ) from None


def _is_linear(estimator: Any, shape: HeadShape) -> bool:
    """Whether it predicts softmax(Wx + b), or Wx + b for values."""
    linear = _sklearn("sklearn.linear_model")
    if shape.task == "regression":
        # LinearModel is not public, but what every "coefficients times columns" model derives from.
        return any(kind.__name__ == "LinearModel" for kind in type(estimator).__mro__)
    analysis = _sklearn("sklearn.discriminant_analysis").LinearDiscriminantAnalysis
    return isinstance(estimator, linear.LogisticRegression | linear.LogisticRegressionCV | analysis)


def _kept(
    estimator: Any, parameters: Mapping[str, Any], feed: FeedName | None, seed: int
) -> dict[str, Any]:
    """The parameters of the head; an instance by its class and its own parameters."""
    if estimator is not None and not isinstance(estimator, str):
        kind = type(estimator)
        parameters = estimator.get_params(deep=False)
        estimator = f"{kind.__module__}:{kind.__qualname__}"
    return {
        "estimator": estimator,
        "parameters": dict(parameters) or None,
        "feed": feed,
        "seed": seed,
    }
