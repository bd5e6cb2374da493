"""Waiting for Flower's nodes and for their replies, with an end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alloykit.checkpoints.wording import shown
from alloykit.errors import AlloyError
from alloykit.plugins.flower_api import Message

SHORTEST, LONGEST = 0.05, 1.0
"""Seconds between two looks: they grow while nothing comes."""


class Replies:
    """The replies to messages that were sent, one by one as they arrive.

    Flower hands over all replies of a round at once. Here each one can be used and dropped before
    the next is fetched, and one that Flower cannot read concerns its own client alone.

    Args:
        grid: Flower's connection.
        sent: Id of a message -> the node that it went to.
        ends: When waiting ends, as ``time.monotonic()`` counts.

    Attributes:
        waiting: Message id -> node, of those that have not answered.
        failed: Node -> why it cannot answer any more.
    """

    def __init__(self, grid: Any, sent: Mapping[str, int], ends: float) -> None:
        self._grid = grid
        self._ends = ends
        self.waiting = dict(sent)
        self.failed: dict[int, str] = {}

    def __iter__(self) -> Iterator[Message]:
        pause = SHORTEST
        while self.waiting and time.monotonic() < self._ends:
            before = len(self.waiting)
            for id in list(self.waiting):
                yield from self._fetched(id)
                if time.monotonic() >= self._ends:
                    break
            pause = SHORTEST if len(self.waiting) < before else min(1.5 * pause, LONGEST)
            if self.waiting:
                time.sleep(max(0.0, min(pause, self._ends - time.monotonic())))

    def _fetched(self, id: str) -> list[Message]:
        try:
            # One at a time: what cannot be read would take the others with it.
            found = list(self._grid.pull_messages([id]))
        except Exception as error:
            self.failed[self.waiting.pop(id)] = f"its reply cannot be read: {in_one_line(error)}"
            return []
        if found:
            node = self.waiting.pop(id)
            if found[0].has_error():
                self.failed[node] = failure(found.pop(0))
        return found


class ArrivingGrid:
    """Flower's connection, whose ``send_and_receive`` gives replies as they arrive.

    Args:
        grid: Flower's connection.
        deadline: Seconds that replies are waited for, instead of what the caller says; None for
            what it says.
    """

    def __init__(self, grid: Any, deadline: float | None) -> None:
        self._grid = grid
        self._deadline = deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Replies:
        """Send the messages; the replies come while they are asked for."""
        limit = timeout if self._deadline is None else self._deadline
        ends = float("inf") if limit is None else time.monotonic() + limit
        given = list(messages)
        ids = {id for id in self._grid.push_messages(given) if id} if given else set()
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in given}
        replies = Replies(self._grid, {id: nodes[id] for id in nodes if id in ids}, ends)
        unsent = set(nodes.values()) - set(replies.waiting.values())
        replies.failed = dict.fromkeys(sorted(unsent), "the message could not be sent")
        return replies


def available(grid: Any, wanted: int, seconds: float) -> list[int]:
    """The nodes that are connected, once there are as many as wanted, or after so many seconds."""
    ends, pause = time.monotonic() + seconds, SHORTEST
    while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() < ends:
        time.sleep(max(0.0, min(pause, ends - time.monotonic())))
        pause = min(1.5 * pause, LONGEST)
    return nodes


def failure(message: Message) -> str:
    """Why a client failed, as it says itself."""
    text = shown(" ".join(str(message.error.reason or "error").split()))
    return f"it failed: {text} (code {message.error.code})"


def in_one_line(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, AlloyError):
        return text
    return f"{type(error).__name__}: {shown(text)}" if text else type(error).__name__
