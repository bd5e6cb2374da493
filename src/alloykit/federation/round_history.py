"""What happened in the rounds of a federation, as data that a report can plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

from alloykit.federation.update import RoundRecord
from alloykit.training.history import better


@dataclass(frozen=True)
class RoundResult:
    """One round.

    Attributes:
        number: From 1.
        score: The server's model on validation after it; None where there is no validation.
        loss: Its validation loss; None where it was not measured.
        training_loss: Mean over the clients of their loss in their last epoch, weighted by their
            examples; None where none was trained.
        bytes_down: Sent by the server, to the clients that were asked.
        bytes_up: Sent by the clients, whether it counted or not.
        seconds: Wall time, validation included.
        record: Who counted, and who was left out and why.
    """

    number: int
    score: float | None
    loss: float | None
    training_loss: float | None
    bytes_down: int
    bytes_up: int
    seconds: float
    record: RoundRecord

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients that counted."""
        return tuple(each.client for each in self.record.counted)


@dataclass(frozen=True)
class FederationHistory:
    """How a federation went.

    Attributes:
        rounds: In order.
        metric: What ``RoundResult.score`` measures; "" where there is no validation.
        higher_is_better: Its direction.
    """

    rounds: tuple[RoundResult, ...] = ()
    metric: str = ""
    higher_is_better: bool = False

    @property
    def scores(self) -> list[float | None]:
        """The validation score after each round."""
        return [each.score for each in self.rounds]

    @property
    def moved(self) -> list[int]:
        """Bytes that were sent up to the end of each round, both ways."""
        return list(accumulate(each.bytes_down + each.bytes_up for each in self.rounds))

    @property
    def best(self) -> int:
        """Number of the round with the best score; 0 where there is none."""
        found, number = None, 0
        for each in self.rounds:
            if each.score is not None and better(each.score, found, self.higher_is_better):
                found, number = each.score, each.number
        return number

    def with_round(self, result: RoundResult) -> FederationHistory:
        """The history with one more round."""
        return replace(self, rounds=(*self.rounds, result))

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; what is not finite becomes text ("nan", "inf").

        Example:
            >>> history = FederationHistory(metric="accuracy", higher_is_better=True)
            >>> FederationHistory.of(history.to_json()) == history
            True
        """
        written: dict[str, Any] = _written(asdict(self))
        return written

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> FederationHistory:
        """The history that ``to_json`` wrote."""
        rounds = tuple(
            RoundResult(
                **{
                    **each,
                    **{name: _read(each[name]) for name in ("score", "loss", "training_loss")},
                    "record": _record(each["record"]),
                }
            )
            for each in saved["rounds"]
        )
        return cls(**{**saved, "rounds": rounds})


def _record(saved: Mapping[str, Any]) -> RoundRecord:
    counted = [{name: _number(name, x) for name, x in each.items()} for each in saved["counted"]]
    return RoundRecord.of({**saved, "counted": counted})


def _number(name: str, value: Any) -> Any:
    return value if name == "client" else _read(value)


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _written(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_written(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
