"""What clients say of the server's model, averaged by their examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from alloykit.errors import CheckpointError
from alloykit.federation.checks import Checks, exceeds
from alloykit.numerics import is_number
from alloykit.plugins.flower_api import Message
from alloykit.plugins.flower_replies import Keys, averaged_metrics, client_of, metrics_of
from alloykit.plugins.flower_waiting import Replies, failure, in_one_line


def evaluated(
    replies: Iterable[Message], keys: Keys, checks: Checks
) -> tuple[dict[str, float | list[float]], list[str]]:
    """The clients' results, averaged; and who is no part of them, with the reason.

    Args:
        replies: As they arrive, or all in a list.
        keys: What things are called in them.
        checks: Limits on the numbers of examples that clients claim.
    """
    reports: list[tuple[str, float, Mapping[str, Any]]] = []
    wrong = []
    for reply in replies:
        node = f"node {reply.metadata.src_node_id}"
        try:
            if reply.has_error():
                raise CheckpointError(failure(reply))
            metrics = metrics_of(reply)
            weight = _weight(metrics, keys, checks)
            reports.append((client_of(reply, metrics, keys, node), weight, metrics))
        except Exception as error:
            # A client may send anything; what breaks here is its own.
            wrong.append(f"{node} ({in_one_line(error)})")
    if isinstance(replies, Replies):
        wrong += [f"node {node} ({why})" for node, why in replies.failed.items()]
        wrong += [f"node {node} (no answer)" for node in replies.waiting.values()]
    absurd = exceeds([weight for _, weight, _ in reports], checks.examples_ratio)
    usable = []
    for report, over in zip(reports, absurd, strict=True):
        if over:
            wrong.append(f"{report[0]} (it says that it has {report[1]:g} examples)")
        else:
            usable.append(report)
    ordered = sorted(usable, key=lambda report: report[0])
    return averaged_metrics([report[1:] for report in ordered], keys.numbers()), wrong


def _weight(metrics: Mapping[str, Any], keys: Keys, checks: Checks) -> float:
    given = metrics.get(keys.num_examples)
    most = math.inf if checks.max_examples is None else checks.max_examples
    if not is_number(given) or not math.isfinite(given) or not 0 < given <= most:
        raise CheckpointError(f"it says that it has {given!r} examples")
    return float(given)
