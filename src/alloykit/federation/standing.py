"""Where a federation stands between two rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from alloykit.federation.clients import Client
from alloykit.federation.contract import ServerState
from alloykit.federation.round_history import FederationHistory
from alloykit.federation.update import Update


@dataclass(frozen=True, eq=False)
class Late:
    """An update that is on its way.

    Attributes:
        update: What the client sent, as a change of the model that it started from.
        due: The round in which it comes.
    """

    update: Update
    due: int


@dataclass(frozen=True, eq=False)
class Standing:
    """All that the next round depends on.

    Attributes:
        model: The server's.
        clients: By name, in order of their names.
        history: The finished rounds.
        state: What the aggregator keeps.
        late: Updates on their way.
    """

    model: nn.Module
    clients: Mapping[str, Client]
    history: FederationHistory
    state: ServerState = field(default_factory=ServerState)
    late: tuple[Late, ...] = ()
