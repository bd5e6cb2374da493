"""Values that differ by tensor: rules by name, and gradients over the layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from alloykit.errors import InvalidParameter

Scalar = bool | int | float | str


@dataclass(frozen=True, init=False)
class Gradient:
    """Values spread evenly over the layers: the first at layer 0, the last at the last layer.

    Between them numbers are interpolated linearly; true and false, or words, hold until the next
    one's place is reached.

    Args:
        values: Numbers, or words, or true and false; one or more.

    Raises:
        InvalidParameter: No values, or values of several kinds, or a number that is not finite.

    Example:
        >>> Gradient([0.0, 0.5, 1.0]).at(0.25)
        0.25
    """

    values: tuple[Scalar, ...]

    def __init__(self, values: Iterable[Scalar]) -> None:
        object.__setattr__(self, "values", tuple(values))
        kinds = {_kind(value) for value in self.values}
        if len(kinds) != 1 or None in kinds:
            raise InvalidParameter(
                "A gradient is a list of finite numbers, or of words, or of true and false. "
                f"Got {list(self.values)}."
            )

    def at(self, place: float) -> Scalar:
        """The value at a place in [0, 1]: 0 is the first layer, 1 the last."""
        last = len(self.values) - 1
        index = int(place * last)
        share = place * last - index
        low = self.values[index]
        if share == 0 or not _is_number(low):
            return low
        return (1 - share) * float(low) + share * float(self.values[index + 1])


@dataclass(frozen=True, init=False)
class ByName:
    """A value by the name of the tensor: globs and what they give; the first that matches counts.

    Globs go over the whole name, and ``*`` also over dots: ``*.mlp.*``, ``model.layers.1?.*``.

    Args:
        rules: A mapping, or pairs, from glob to value; a value may be a ``Gradient``, or a list
            with one per member. End with ``"*"``, unless the others cover every tensor.

    Raises:
        InvalidParameter: No rules, or a glob that is not text.

    Example:
        >>> rules = ByName({"*.mlp.*": 0.9, "*": 0.5})
        >>> resolved(rules, "layers.0.mlp.weight", Layers.of(["layers.0.mlp.weight"]))
        0.9
    """

    rules: tuple[tuple[str, Any], ...]

    def __init__(self, rules: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        pairs = rules.items() if isinstance(rules, Mapping) else rules
        object.__setattr__(self, "rules", tuple((glob, value) for glob, value in pairs))
        if not self.rules or not all(isinstance(glob, str) and glob for glob, _ in self.rules):
            raise InvalidParameter(
                "Rules by name are one or more globs, each with a value. "
                f"Got {[glob for glob, _ in self.rules]}."
            )

    def value_for(self, name: str) -> Any:
        """What the first rule that matches gives, not yet resolved.

        Raises:
            InvalidParameter: No rule matches.
        """
        for glob, value in self.rules:
            if fnmatchcase(name, glob):
                return value
        globs = ", ".join(glob for glob, _ in self.rules)
        raise InvalidParameter(
            f"None of the rules ({globs}) matches the tensor {name}. "
            "End them with '*' and the value for all others."
        )


@dataclass(frozen=True)
class Layers:
    """Where each tensor stands among the layers of its model.

    A tensor's layer is the first whole number in its name, and what stands before it is the stack
    that the number counts: ``model.layers.12.mlp.weight`` is layer 12 of ``model.layers``. Each
    stack runs from 0 to 1 on its own, as encoder and decoder do. Tensors outside the layers
    (embeddings, the final norm, the head) stand at 0. A number that takes a single value does not
    count layers (``classifier.1.weight``), unless nothing else does: then that one layer is the
    last, and stands at 1.

    Attributes:
        places: Name of a tensor inside the layers -> index / (number of layers - 1).

    Example:
        >>> layers = Layers.of(["embed", "blocks.0.w", "blocks.1.w", "blocks.2.w"])
        >>> [layers.place(name) for name in ("embed", "blocks.1.w", "blocks.2.w")]
        [0.0, 0.5, 1.0]
    """

    places: Mapping[str, float]

    @classmethod
    def of(cls, names: Iterable[str]) -> Layers:
        """The layers of a model, from the names of its tensors."""
        found = {name: layer for name in names if (layer := _layer(name)) is not None}
        stacks: dict[str, set[int]] = {}
        for stack, index in found.values():
            stacks.setdefault(stack, set()).add(index)
        places = {
            (stack, index): rank / (len(indices) - 1) if len(indices) > 1 else 1.0
            for stack, indices in stacks.items()
            if len(indices) > 1 or len(stacks) == 1
            # Ranks, not numbers: in a Sequential the layers without parameters leave gaps.
            for rank, index in enumerate(sorted(indices))
        }
        return cls({name: places[layer] for name, layer in found.items() if layer in places})

    def place(self, name: str) -> float:
        """Where a tensor stands: 0 at the first layer, 1 at the last, 0 outside the layers."""
        return self.places.get(name, 0.0)


def resolved(value: Any, name: str, layers: Layers) -> Any:
    """The value for one tensor: rules looked up, gradients interpolated, lists item by item.

    Args:
        value: Anything; ``ByName`` and ``Gradient`` in it, also inside lists, are resolved. A
            mapping from glob to value is as good as ``ByName``.
        name: The tensor.
        layers: The layers of its model.

    Raises:
        InvalidParameter: Rules of which none matches the name.

    Example:
        >>> layers = Layers.of(["h.0.w", "h.1.w"])
        >>> resolved([0.3, Gradient([0.0, 1.0])], "h.1.w", layers)
        [0.3, 1.0]
    """
    if isinstance(value, Mapping):
        value = ByName(value)
    if isinstance(value, ByName):
        return resolved(value.value_for(name), name, layers)
    if isinstance(value, Gradient):
        return value.at(layers.place(name))
    if isinstance(value, list | tuple):
        return [resolved(each, name, layers) for each in value]
    return value


def varies(value: Any) -> bool:
    """Whether a value can differ from tensor to tensor."""
    if isinstance(value, list | tuple):
        return any(map(varies, value))
    return isinstance(value, ByName | Gradient | Mapping)


def unmatched(value: Any, names: Sequence[str]) -> list[str]:
    """The globs in a value that match none of these names: probably misspelt.

    Example:
        >>> unmatched(ByName({"*.mpl.*": 0.9, "*": 0.5}), ["layers.0.mlp.weight"])
        ['*.mpl.*']
    """
    globs = dict.fromkeys(_globs(value))
    return [glob for glob in globs if not any(fnmatchcase(name, glob) for name in names)]


def to_json(value: Any) -> Any:
    """A value as what JSON can say: {"gradient": [...]}, {"by_name": [[glob, value], ...]}.

    Example:
        >>> to_json([0.5, Gradient([0, 1])])
        [0.5, {'gradient': [0, 1]}]
    """
    if isinstance(value, Gradient):
        return {"gradient": list(value.values)}
    if isinstance(value, Mapping):
        value = ByName(value)
    if isinstance(value, ByName):
        return {"by_name": [[glob, to_json(each)] for glob, each in value.rules]}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return value


def from_json(value: Any) -> Any:
    """The value that ``to_json`` was given; tuples come back as lists.

    Example:
        >>> from_json({"by_name": [["*", {"gradient": [0, 1]}]]})
        ByName(rules=(('*', Gradient(values=(0, 1))),))
    """
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if isinstance(value, dict) and set(value) == {"gradient"}:
        return Gradient(tuple(value["gradient"]))
    if isinstance(value, dict) and set(value) == {"by_name"}:
        return ByName(tuple((glob, from_json(each)) for glob, each in value["by_name"]))
    return value


def _globs(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = ByName(value)
    if isinstance(value, ByName):
        for glob, each in value.rules:
            yield glob
            yield from _globs(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _globs(each)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: object) -> type | None:
    """What must be alike in a gradient: numbers, truth values or words; None for others."""
    if isinstance(value, bool | str):
        return type(value)
    return float if _is_number(value) and math.isfinite(value) else None  # type: ignore[arg-type]


def _layer(name: str) -> tuple[str, int] | None:
    """The stack and the index of the layer that a tensor's name tells; None outside the layers."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isascii() and part.isdigit() and len(part) < 10:
            return ".".join(parts[:index]), int(part)
    return None
