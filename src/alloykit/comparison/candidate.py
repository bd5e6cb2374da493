"""One way of combining the members, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alloykit.fusion.head import Source
from alloykit.types import Family


@dataclass(frozen=True)
class Candidate:
    """One way of combining, not yet tried.

    Attributes:
        name: Unique and readable: the method, its parameters, and the members where not all.
        family: Which sort of combining it is.
        method: Registered name of the rule, merge method, soup or head; "distill" or "retrain";
            "" for a single member.
        parameters: Its parameters.
        members: Names of the members that it takes.
        weights_by: Metric that its weights come from; "" for uniform or fitted ones.
        source: What a fusion head is fed: "outputs" or "features".
        context: What describes an example to a fusion head: "none" or "features".
        learns_from: Who teaches a student; the split that a model is retrained on.
        aligned: Whether the units of the members are brought into one order before a merge.
        start: Members whose average a student starts from; () for one that starts anew.
        why_not: Why it does not apply here, in plain words; "" where it does.
    """

    name: str
    family: Family
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    weights_by: str = ""
    source: Source = "outputs"
    context: Literal["none", "features"] = "none"
    learns_from: str = ""
    aligned: bool = False
    start: tuple[str, ...] = ()
    why_not: str = ""


def label(method: str, parameters: Mapping[str, Any]) -> str:
    """A readable name.

    Example:
        >>> label("average", {"space": "logits"}), label("interpolate", {"alpha": 0.5})
        ('average (logits)', 'interpolate (alpha 0.5)')
    """
    words = ", ".join(_words(parameters))
    return f"{method} ({words})" if words else method


def _words(parameters: Mapping[str, Any]) -> Iterator[str]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _words(value)
        elif isinstance(value, list | tuple):
            yield f"{name} {' '.join(map(str, value))}"
        elif value is not None and value is not False:
            yield value if isinstance(value, str) else f"{name} {value}"
