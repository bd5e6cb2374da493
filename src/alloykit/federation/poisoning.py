"""Attacks of simulated clients: what they send, and what they are trained on, instead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from alloykit.data.splits import IGNORED
from alloykit.errors import DataError, InvalidParameter, did_you_mean
from alloykit.numerics import is_number
from alloykit.training.order import derived_seed
from alloykit.training.rows import Rows

Kind = Literal["sign_flip", "noise", "nan", "label_flip", "claim"]

STRENGTHS: Mapping[str, float] = {"sign_flip": 10.0, "noise": 1.0, "claim": 1e6}


@dataclass(frozen=True)
class Attack:
    """What one poisoned client does, in every round in which it takes part.

    Args:
        kind: "sign_flip" sends server - strength · (client - server); "noise" sends the server's
            model with Gaussian noise of that standard deviation; "nan" sends NaN; "label_flip"
            trains on the classes C - 1 - y; "claim" says that it has so many times its examples.
            The first three change parameters; statistics of BatchNorm are sent as they are.
        strength: Above 0; by default 10 for "sign_flip", 1 for "noise" and 1e6 for "claim". The
            other kinds have none.

    Raises:
        InvalidParameter: Another kind, or a strength that the kind does not take.

    Example:
        >>> Attack("sign_flip")
        Attack(kind='sign_flip', strength=10.0)
    """

    kind: Kind
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidParameter(
                f"There is no attack {self.kind!r}.{did_you_mean(str(self.kind), get_args(Kind))} "
                f"There are: {', '.join(get_args(Kind))}."
            )
        if self.strength is None:
            object.__setattr__(self, "strength", STRENGTHS.get(self.kind))
        elif self.kind not in STRENGTHS:
            raise InvalidParameter(f"The attack {self.kind} has no strength. Leave it out.")
        elif not is_number(self.strength) or not 0 < self.strength < math.inf:
            raise InvalidParameter(
                f"The strength of {self.kind} must be above 0. Got {self.strength!r}."
            )

    def to_json(self) -> dict[str, Any]:
        """Kind and strength as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, given: Attack | Mapping[str, Any] | str) -> Attack:
        """The attack itself, or that of a mapping or of the name of its kind."""
        if isinstance(given, Attack):
            return given
        if isinstance(given, Mapping):
            if odd := [name for name in given if name not in ("kind", "strength")]:
                raise InvalidParameter(f"An attack has a kind and a strength. Got {odd[0]!r}, too.")
            if "kind" not in given:
                raise InvalidParameter(f"This attack has no kind: {dict(given)!r}.")
            return cls(**given)
        return cls(given)  # type: ignore[arg-type]


def poisoned_rows(rows: Rows, attack: Attack | None, classes: int) -> Rows:
    """What a client trains on: flipped classes y -> C - 1 - y where that is its attack.

    Args:
        rows: Its own data.
        attack: Its attack, or None.
        classes: Number of classes C.

    Raises:
        DataError: The targets are no classes.

    Example:
        >>> rows = Rows(torch.zeros(3, 1), torch.tensor([0, 1, 9]))
        >>> poisoned_rows(rows, Attack("label_flip"), 10).targets.tolist()
        [9, 8, 0]
    """
    if attack is None or attack.kind != "label_flip":
        return rows
    if rows.targets is None or rows.targets.is_floating_point():
        raise DataError("The attack label_flip flips classes, and these targets are none.")
    flipped = torch.where(rows.targets == IGNORED, IGNORED, classes - 1 - rows.targets)
    return replace(rows, targets=flipped)


def poisoned_tensors(
    tensors: Mapping[str, Tensor],
    server: Mapping[str, Tensor],
    attack: Attack | None,
    seed: int,
) -> dict[str, Tensor]:
    """What a client sends instead of the parameters that it trained.

    Args:
        tensors: Its own parameters, by name.
        server: Those that it started from.
        attack: Its attack, or None.
        seed: Of the noise; every tensor has a stream of its own.

    Example:
        >>> server, client = {"w": torch.tensor([1.0])}, {"w": torch.tensor([1.5])}
        >>> poisoned_tensors(client, server, Attack("sign_flip", 2.0), 0)["w"]
        tensor([0.])
    """
    if attack is None or attack.kind not in ("sign_flip", "noise", "nan"):
        return dict(tensors)
    return {
        name: _poisoned(tensor, server[name], attack, derived_seed(seed, name))
        for name, tensor in tensors.items()
    }


def claimed(examples: int, attack: Attack | None) -> float:
    """The number of examples that a client says it has."""
    if attack is None or attack.kind != "claim":
        return examples
    return examples * (attack.strength or 1.0)


def _poisoned(tensor: Tensor, server: Tensor, attack: Attack, seed: int) -> Tensor:
    if attack.kind == "nan":
        return torch.full_like(tensor, torch.nan)
    strength = attack.strength or 1.0
    if attack.kind == "sign_flip":
        return server - strength * (tensor - server)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
    return server + (strength * noise).to(server)
