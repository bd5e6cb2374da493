"""How a merge method is written: a factory whose signature is its parameters, and its contract."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from alloykit.registry import merge_methods
from alloykit.types import MergeMethod, TensorGroup

ANY_NUMBER = range(1, 10_000)


def merge_method(
    *,
    needs: frozenset[str] = frozenset(),
    members: range = ANY_NUMBER,
    elementwise: bool = True,
    ordered: bool = False,
    paper: str = "",
) -> Callable[[Callable[..., Callable[[TensorGroup], Tensor]]], Callable[..., MergeMethod]]:
    """Register a factory of merge functions under its own name.

    The decorated factory takes the method's parameters and returns a pure function
    ``TensorGroup -> Tensor``; calling the registered name gives a ``MergeMethod`` that also knows
    its parameters and its contract.

    Args:
        needs: What it must be given besides members ("base", ...).
        members: How many models it takes, as a range.
        elementwise: Whether each output element depends on the same element of the inputs only.
        ordered: Whether the order of the members carries meaning.
        paper: Where the method comes from, for the generated documentation.
    """

    def register(
        factory: Callable[..., Callable[[TensorGroup], Tensor]],
    ) -> Callable[..., MergeMethod]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def build(*args: Any, **kwargs: Any) -> MergeMethod:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            # NumPy's and torch's numbers become Python's, which a plan can write as JSON.
            bound.arguments |= {
                name: value.item()
                for name, value in bound.arguments.items()
                if isinstance(value, np.generic | Tensor)
            }
            merge = factory(*bound.args, **bound.kwargs)
            return MergeMethod(
                name=factory.__name__,
                parameters=dict(bound.arguments),
                merge=lambda group, _state: merge(group),
                needs=needs,
                members=members,
                elementwise=elementwise,
                ordered=ordered,
            )

        merge_methods.add(
            build,
            needs=needs,
            members=members,
            elementwise=elementwise,
            ordered=ordered,
            paper=paper,
        )
        return build

    return register
