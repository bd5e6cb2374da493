"""What clients send, and what becomes of it: the records of one round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from alloykit.federation.contract import ServerState


@dataclass(frozen=True, eq=False)
class Update:
    """What one client sends after training.

    Attributes:
        client: A stable name of its own.
        model: Its model: a state dict, a list of arrays, a module, or a path, as
            ``open_checkpoint`` takes them.
        num_examples: Examples that it was trained on; None where it does not say.
        round: The round whose model it started from; None means this one.
        steps: Local steps, for FedNova (``normalised_steps`` with momentum).
        loss: Loss of the server's model on its data before training, for q-FedAvg.
        control: Change of its control variate by name, for SCAFFOLD.
        delta: Whether ``model`` holds what training changed instead of what it led to. Updates
            from an older round must: the server does not keep the models of older rounds.
    """

    client: str
    model: Any
    num_examples: float | None = None
    round: int | None = None
    steps: float | None = None
    loss: float | None = None
    control: Mapping[str, Tensor] | None = None
    delta: bool = False


@dataclass(frozen=True)
class Counted:
    """A client that counts in a round.

    Attributes:
        client: Its name.
        num_examples: What it said; None where nobody says.
        coefficient: What its delta was multiplied with; None where no such number exists.
        norm: 2-norm of its delta; None where it was not measured.
    """

    client: str
    num_examples: float | None = None
    coefficient: float | None = None
    norm: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """A client that does not count in a round, and why."""

    client: str
    reason: str


@dataclass(frozen=True)
class RoundRecord:
    """What happened in one aggregation.

    Attributes:
        round: From 1.
        method: Name of the aggregator.
        counted: The clients that count, in order of their names.
        left_out: The others, in the order in which they came.
        kept_server: Why the server's model was kept; "" where there is a new one.
    """

    round: int
    method: str
    counted: tuple[Counted, ...]
    left_out: tuple[LeftOut, ...] = ()
    kept_server: str = ""

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> RoundRecord:
        """The record that ``to_json`` wrote."""
        return cls(
            **{
                **saved,
                "counted": tuple(Counted(**each) for each in saved["counted"]),
                "left_out": tuple(LeftOut(**each) for each in saved["left_out"]),
            }
        )


@dataclass(frozen=True, eq=False)
class Aggregated:
    """The result of one aggregation.

    Attributes:
        tensors: The new model, name by name, in the server's dtypes; the server's own tensors
            where no new model came about.
        state: What the server keeps for the next round.
        record: What happened.
    """

    tensors: dict[str, Tensor]
    state: ServerState = field(default_factory=ServerState)
    record: RoundRecord = field(default_factory=lambda: RoundRecord(0, "", ()))
