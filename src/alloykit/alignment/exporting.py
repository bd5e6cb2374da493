"""A model's graph from torch.export, whatever the model returns; or one error that says why not."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.data.batches import Inputs, forward, parts, placed
from alloykit.errors import AlignmentError
from alloykit.evaluation.predicting import evaluating, running

INSIDE = "model."
"""What stands before the names of the model's tensors in the exported program."""


def exported(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The model as torch.export gives it, in evaluation mode; all that it returns are tensors.

    Raises:
        AlignmentError: torch.export cannot trace the model, or it gives no tensors.
        DataError: The model cannot be run on these inputs.
    """
    who = type(model).__name__
    given = placed(inputs, model)
    with evaluating(model):
        with running(who, given):
            outputs = answers(forward(model, given))
        if not outputs:
            raise AlignmentError(
                f"{who} returns no tensors, so that nothing can be said about its units. Give a "
                "module whose forward returns a tensor, or tensors in a list, dict or dataclass."
            )
        args = () if isinstance(given, dict) else tuple(parts(given))
        kwargs = given if isinstance(given, dict) else {}
        try:
            with _quiet():
                return torch.export.export(_Answers(model), args, kwargs, strict=False)
        except Exception as error:
            raise AlignmentError(
                f"{who} cannot be traced: {_short(error)}\n"
                "Its permutation groups are read from the graph that torch.export gives. Take "
                "what depends on the values of tensors (if, .item(), sizes from data) out of "
                "forward, or write the groups by hand as PermutationGroups."
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings, logs and prints of torch.export: what fails becomes one error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)


def _short(error: Exception) -> str:
    """The first line of torch's long texts, and the model's own line where it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [n for n, line in enumerate(lines) if line.startswith("File ") and "/torch/" not in line]
    where = "".join(f"\n  {line}" for line in lines[own[-1] : own[-1] + 2]) if own else ""
    if type(error).__name__.startswith("GuardOnDataDependent"):
        return f"what forward does depends on the values of a tensor.{where}"
    return f"{type(error).__name__}: {lines[0] if lines else ''}{where}"


class _Answers(nn.Module):
    """A model that gives a list of tensors, whatever kind of object it returned them in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return answers(self.model(*args, **kwargs))


def answers(given: Any) -> list[Tensor]:
    """The tensors in what a model returns: in lists, mappings and dataclasses of any depth.

    Example:
        >>> len(answers({"logits": torch.zeros(2), "states": [torch.zeros(1), None]}))
        2
    """
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, Mapping):
        return [tensor for value in given.values() for tensor in answers(value)]
    if isinstance(given, list | tuple):
        return [tensor for value in given for tensor in answers(value)]
    if is_dataclass(given) and not isinstance(given, type):
        return [t for each in fields(given) for t in answers(getattr(given, each.name))]
    return []
