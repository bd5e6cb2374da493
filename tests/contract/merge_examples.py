"""Examples of every merge method's parameters, for the contract tests: add a line for yours.

A property that a method lacks by its nature is named in ``lacks``, with the reason. The names are
those of the checks in ``merge_contract``, without ``check_``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alloykit.types import TensorGroup

A_SUM = "the weights do not sum to one, so equal members give a multiple of that member"
PRECISE = ("float64", "float64_digits", "one_rounding")
MIXED = "elements of a matrix are mixed: the error is relative to the largest of all, not of each"
ABSOLUTE = "a parameter is a distance, so larger inputs do not give a larger output"


@dataclass(frozen=True)
class Example:
    """A method with parameters.

    Attributes:
        method: Its registered name.
        parameters: Its parameters.
        lacks: Property -> why the method does not have it with these parameters.
        usable: Which of the drawn groups can be merged at all.
        members: How many members, where a parameter is a list.
        least: How many members of weight it takes, at least.
        base: Whether it is given a base where that is optional.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    usable: Callable[[TensorGroup], bool] = lambda group: True
    members: int | None = None
    least: int = 1
    base: bool = False

    def __str__(self) -> str:
        given = {**self.parameters, **({"base": "given"} if self.base else {})}
        settings = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"{self.method}({settings})"


def newest_counts(group: TensorGroup) -> bool:
    """With decay 0 the newest counts alone; without weight, nothing would."""
    return group.weights[-1] > 0.0


def sums_to_something(group: TensorGroup) -> bool:
    """Weights that cancel cannot be divided by their sum."""
    return abs(sum(group.weights)) > 0.1


def first_counts(group: TensorGroup) -> bool:
    """At t = 0 the first counts alone."""
    return group.weights[0] > 0.0


def one_sign(group: TensorGroup) -> bool:
    """Weights of both signs can cancel among those that agree."""
    return min(group.weights) >= 0.0


EXAMPLES = [
    Example("linear"),
    Example("exponential"),
    Example("exponential", {"decay": 0.0}, usable=newest_counts),
    Example("exponential", {"decay": 0.5}),
    Example("exponential", {"decay": 1.0}),
    Example("interpolate"),
    Example("interpolate", {"alpha": 0.0}),
    Example("interpolate", {"alpha": 0.3}),
    Example("interpolate", {"alpha": 1.0}),
    Example("interpolate", {"alpha": 1.5}),
    Example("interpolate", {"alpha": -0.5}),
    Example("slerp"),
    Example("slerp", {"t": 0.0}, usable=first_counts),
    Example("slerp", {"t": 0.2}),
    Example("slerp", {"t": 1.0, "compat": "mergekit"}, usable=newest_counts),
    Example("linear", {"normalize": False}, lacks={"equal_members": A_SUM}),
    Example("exponential", {"decay": 0.5, "running": True}),
    *[Example("wsm", {"decay": decay}) for decay in ("linear", "cosine", "inverse_sqrt")],
    Example("task_arithmetic"),
    Example("task_arithmetic", {"scale": -0.7}),
    Example("task_arithmetic", {"normalize": True, "scale": 0.5}, usable=sums_to_something),
    Example("passthrough"),
    Example("passthrough", {"scale": -0.5}, lacks={"equal_members": "it is scaled"}),
    Example("nearswap", lacks={"float64_digits": ABSOLUTE}),
    Example("nearswap", {"t": 0.5}, lacks={"float64_digits": ABSOLUTE}),
    Example("median"),
    Example("trimmed_mean"),
    Example("trimmed_mean", {"trim": 0.4}),
    Example("geometric_median"),
    Example("geometric_median", {"scope": "model"}),
    *[
        Example("nuslerp", parameters, base=base)
        for base in (False, True)
        for parameters in ({}, {"flatten": False}, {"flatten": False, "row_wise": True})
    ],
    Example("multislerp"),
    Example("multislerp", base=True),
    Example("multislerp", {"normalize_weights": False}, lacks={"equal_members": A_SUM}),
    Example("karcher"),
    Example("karcher", {"max_iter": 2}),
    Example("model_stock", least=2),
    Example("model_stock", {"filter_wise": True}, least=2),
    Example("fisher"),
    Example("fisher", {"normalize": True, "floor": 1e-3}),
    *[
        Example(method, parameters, lacks=dict.fromkeys(PRECISE, MIXED))
        for method, parameters in (
            ("regmean", {}),
            ("regmean", {"reduce_non_diagonal": 0.0}),
            ("tsv_m", {}),
            ("tsv_m", {"scale": -0.5, "exclude": "layer.*"}),
            ("iso_c", {}),
            ("iso_cts", {}),
            ("iso_cts", {"common": 0.3}),
            ("wudi", {}),
        )
    ],
    Example("ties"),
    Example("ties", {"density": 0.5, "scale": -0.7, "normalize": False}),
    Example("ties", {"density": [0.2, 1.0, 0.7], "scope": "model"}, members=3),
    Example("ties", {"density": 0.5, "rescale": True, "compat": "mergekit"}, usable=one_sign),
    *[
        example
        for name in ("dare_linear", "dare_ties")
        for example in (
            Example(name),
            Example(name, {"density": [0.5, 0.9, 1.0]}, members=3),
            Example(name, {"density": 0.5, "rescale": False, "scale": 0.5}),
            Example(name, {"density": 0.6, "compat": "mergekit"}),
        )
    ],
    *[
        example
        for name in ("della", "della_linear")
        for example in (
            Example(name),
            Example(name, {"density": [0.5, 0.6, 1.0], "epsilon": 0.3}, members=3),
            Example(name, {"density": 0.6, "compat": "mergekit"}),
        )
    ],
    *[
        example
        for name in ("breadcrumbs", "breadcrumbs_ties")
        for example in (
            Example(name),
            Example(name, {"density": [0.5, 0.3, 1.0], "gamma": [0.1, 0.0, 0.2]}, members=3),
            Example(name, {"density": 0.4, "gamma": 0.2, "compat": "mergekit"}),
        )
    ],
    Example("sce"),
    Example("sce", {"select_topk": 0.5}),
    Example("ram", lacks={"float64_digits": ABSOLUTE}),
    Example("ram", {"epsilon": 0.0}),
    Example("ramplus_tl", {"r": 0.5}, lacks={"float64_digits": ABSOLUTE}),
    Example("consensus"),
    Example("consensus", {"tall_mask_lambda": [0.2, 0.4, 0.6], "k": 1, "scale": 0.3}, members=3),
    Example("arcee_fusion"),
]
