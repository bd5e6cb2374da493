"""How to train: the numbers of a run, checked all at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from alloykit.errors import InvalidParameter, MissingInput, did_you_mean, listing
from alloykit.numerics import is_number, is_whole

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Training:
    """How to train a model: with AdamW, or with plain steps along the gradient.

    Args:
        epochs: Passes over the data, at least 1.
        batch_size: Examples that the model sees at a time, at least 1.
        learning_rate: Peak step size, above 0. The default 2e-3 suits small networks from scratch;
            fine-tuning takes 1e-5 to 1e-4. SGD takes larger ones: 0.01 to 0.1.
        weight_decay: AdamW's decoupled decay, at least 0 (0.01 is torch's). SGD adds it times the
            parameter to the gradient.
        schedule: How the step size falls after the warm-up: along half a cosine or a line to 0, or
            not at all.
        warmup: Part of all steps over which the step size rises in a line, in [0, 1).
        accumulate: Batches whose gradients make one step, at least 1: a step then counts
            ``batch_size * accumulate`` examples, in the memory of ``batch_size``.
        clip_norm: Longest gradient (2-norm over all parameters), above 0; None leaves it.
        precision: What the forward pass computes in. Parameters stay what they are; "bfloat16" is
            the choice on recent GPUs, "float16" scales the loss so that gradients do not vanish.
        patience: Epochs without a better validation score before training stops, at least 1;
            None goes on to the end.
        seed: Of the order of the examples, dropout and augmentation; at least 0.
        optimizer: "adamw", or "sgd": what clients of a federation use, since it keeps nothing
            from one round to the next.
        momentum: Part of the last step that SGD adds to the next one, in [0, 1).

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> Training(epochs=3).batch_size
        64

    References:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, arXiv:1711.05101; SGDR,
        2017, arXiv:1608.03983, equation 5 without restarts.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "float32"
    patience: int | None = None
    seed: int = 0
    optimizer: Optimizer = "adamw"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if wrong := _mistakes(self):
            raise InvalidParameter(f"Training cannot go by these settings:\n{listing(wrong, 20)}")

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON values; ``Training.of`` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Training:
        """The settings of a mapping; what it leaves out has its default.

        Raises:
            InvalidParameter: Names that are no settings, or numbers outside their ranges.

        Example:
            >>> Training.of({"epochs": 3}) == Training(epochs=3)
            True
        """
        if not isinstance(settings, Mapping):
            raise InvalidParameter(
                "Training takes a Training, or a mapping of its settings such as {'epochs': 30}. "
                f"Got {settings!r}."
            )
        known = [field.name for field in dataclasses.fields(cls)]
        if odd := [name for name in settings if name not in known]:
            lines = [f"{name!r}.{did_you_mean(str(name), known)}" for name in odd]
            raise InvalidParameter(
                f"Training has no such settings:\n{listing(lines)}\nIt has: {', '.join(known)}."
            )
        return cls(**settings)


def _mistakes(given: Training) -> list[str]:
    wrong = [
        _whole(given, "epochs", 1),
        _whole(given, "batch_size", 1),
        _real(given, "learning_rate", "above 0", lambda x: x > 0),
        _real(given, "weight_decay", "at least 0", lambda x: x >= 0),
        _one_of(given, "schedule", get_args(Schedule)),
        _real(given, "warmup", "in [0, 1): a part of all steps", lambda x: 0 <= x < 1),
        _whole(given, "accumulate", 1),
        given.clip_norm is not None and _real(given, "clip_norm", "above 0", lambda x: x > 0),
        _one_of(given, "precision", get_args(Precision)),
        given.patience is not None and _whole(given, "patience", 1),
        _whole(given, "seed", 0),
        _one_of(given, "optimizer", get_args(Optimizer)),
        _real(given, "momentum", "in [0, 1)", lambda x: 0 <= x < 1) or _needless_momentum(given),
    ]
    return [line for line in wrong if line]


def _needless_momentum(given: Training) -> str:
    if given.momentum and given.optimizer == "adamw":
        return f"'momentum' is for optimizer='sgd'; AdamW has its own. Got {given.momentum!r}."
    return ""


def _whole(given: Training, name: str, least: int) -> str:
    value = getattr(given, name)
    if is_whole(value) and value >= least:
        return ""
    return f"{name!r} must be a whole number of at least {least}. Got {value!r}."


def _real(given: Training, name: str, range_text: str, fits: Any) -> str:
    value = getattr(given, name)
    if is_number(value) and math.isfinite(value) and fits(value):
        return ""
    return f"{name!r} must be a number {range_text}. Got {value!r}."


def _one_of(given: Training, name: str, choices: tuple[str, ...]) -> str:
    value = getattr(given, name)
    if value in choices:
        return ""
    hint = did_you_mean(str(value), choices)
    return f"{name!r} must be one of {', '.join(choices)}. Got {value!r}.{hint}"


def check_patience(training: Training, validated: bool) -> None:
    """Refuse to wait for a better score where nothing is scored."""
    if training.patience is not None and not validated:
        raise MissingInput(
            f"patience={training.patience} stops when the validation score gets no better, and "
            "there is no validation. Give validation data, or leave patience out."
        )
