"""How a split is written in a study file: exactly one source, and what to do with its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alloykit.errors import DataError, did_you_mean, listing

SOURCES = ("npz", "images", "csv", "folder", "object")

BELONGS = {
    "inputs": "npz",
    "targets": "npz",
    "labels": "images",
    "target": "csv",
    "header": "csv",
    "delimiter": "csv",
    "size": "folder",
    "color": "folder",
    "arguments": "object",
}
"""Keys that mean something with one source only."""

NOT_WITH_OBJECT = ("scale", "mean", "std", "shape", "dtype", "classes")

Dtype = Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8"]


class SplitSpec(BaseModel):
    """One split of a study file.

    Attributes:
        npz: A file of NumPy arrays; ``inputs`` and ``targets`` name the arrays.
        images: An idx file of images (.gz or not); ``labels`` is the idx file of their labels.
        csv: A table; ``target`` is the name or position of the target's column.
        folder: A folder with one sub-folder of images per class; ``size`` is [height, width].
        object: An import path of a Dataset, a DataLoader, a tuple (inputs, targets), or of a
            function that is called with ``arguments`` and returns one of them.
        classes: Names of the classes in order, for csv and folder.
        rows: The part of the examples to use, as a Python slice: "0:5000".
        scale: Inputs are multiplied by it; 1/255 for uint8 images where it is not given.
        mean: Subtracted after scaling: a number, or one per channel (or column).
        std: Divided by after that: a number, or one per channel (or column).
        shape: One example's shape afterwards.
        dtype: The inputs' element type at the end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    npz: str | None = None
    inputs: str = "x"
    targets: str = "y"
    images: str | None = None
    labels: str | None = None
    csv: str | None = None
    target: str | int = -1
    header: bool | None = None
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    folder: str | None = None
    size: tuple[int, int] | None = None
    color: bool = True
    object: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    classes: list[str] | None = None
    rows: str | None = None
    scale: float | None = None
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    shape: list[int] | None = None
    dtype: Dtype | None = None

    @property
    def source(self) -> str:
        """Which of the sources it has."""
        return next(key for key in SOURCES if getattr(self, key) is not None)

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        # In YAML the classes 0, 1 and yes are not text, though a table's cells are.
        return [str(name) for name in value] if isinstance(value, list) else value

    @field_validator("scale", "mean", "std")
    @classmethod
    def _finite(cls, value: float | list[float] | None) -> float | list[float] | None:
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("must be finite")
        return value

    @field_validator("std")
    @classmethod
    def _positive(cls, value: float | list[float] | None) -> float | list[float] | None:
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if any(number <= 0 for number in numbers):
            raise ValueError("must be above 0, since the inputs are divided by it")
        return value

    @field_validator("shape", "size")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        if value is not None and any(number < 1 for number in value):
            raise ValueError("must be whole numbers of at least 1")
        return value

    @field_validator("rows")
    @classmethod
    def _is_slice(cls, value: str | None) -> str | None:
        if value is not None:
            as_slice(value)
        return value

    @model_validator(mode="after")
    def _one_source(self) -> SplitSpec:
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"needs exactly one of {', '.join(SOURCES)}; it has {found}")
        if given == ["images"] and self.labels is None:
            raise ValueError("images needs labels: the idx file of their labels")
        stray = [k for k in sorted(self.model_fields_set) if BELONGS.get(k, given[0]) != given[0]]
        if given == ["object"]:
            stray += [k for k in NOT_WITH_OBJECT if getattr(self, k) is not None]
        if self.classes is not None and given[0] in ("npz", "images"):
            stray.append("classes")
        if stray:
            raise ValueError(f"{', '.join(stray)} cannot be used with {given[0]}")
        return self


def as_spec(spec: SplitSpec | Mapping[str, Any], name: str) -> SplitSpec:
    """The checked spec of the split of that name; DataError lists everything wrong with it."""
    if isinstance(spec, SplitSpec):
        return spec
    if not isinstance(spec, Mapping):
        raise DataError(f"{name} must be a mapping such as {{npz: {name}.npz}}. Got {spec!r}.")
    try:
        return SplitSpec.model_validate(dict(spec))
    except ValidationError as error:
        lines = [_line(problem) for problem in error.errors()]
        raise DataError(f"The data of {name} cannot be used:\n{listing(lines)}") from error


def as_slice(rows: str) -> slice:
    """The slice that "start:stop" or "start:stop:step" stands for.

    Example:
        >>> as_slice("0:5000")
        slice(0, 5000, None)
    """
    parts = rows.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        numbers = []
    step = numbers[2] if len(numbers) == 3 else None
    if len(numbers) not in (2, 3) or (step is not None and step < 1):
        raise ValueError(f"must be a slice such as '0:5000' or '1::2', with a step >= 1: {rows!r}")
    return slice(*numbers)


def _line(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(SplitSpec.model_fields)
        return f"{place}: there is no such key.{did_you_mean(place, known)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
