"""Whether what was chosen is made for the task at hand."""

from __future__ import annotations

from collections.abc import Collection

from alloykit.errors import InvalidParameter
from alloykit.registry import Registry
from alloykit.types import Task


def require_served(
    what: str, tasks: Collection[str], task: Task, registry: Registry, more: str = ""
) -> None:
    """Refuse what does not serve ``task``, naming what does.

    Args:
        what: Its kind and name: "loss kl".
        tasks: The tasks that it serves.
        task: The one at hand.
        registry: Where the others are.
        more: What else the others need for this task.

    Raises:
        InvalidParameter: It does not serve the task.
    """
    if task in tasks:
        return
    fitting = [entry.name for entry in registry.entries() if task in entry.contract["tasks"]]
    raise InvalidParameter(
        f"The {what} serves {' and '.join(sorted(tasks))}, not {task}. "
        f"For {task} there are: {', '.join(fitting)}{more}."
    )
