"""The open checkpoints that a plan is run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from alloykit.checkpoints.file_checkpoint import source_files
from alloykit.checkpoints.source_file import SourceFile
from alloykit.errors import MissingInput
from alloykit.execution.plan import Plan
from alloykit.types import Checkpoint


@dataclass(frozen=True)
class Inputs:
    """The open checkpoints that a plan was made from.

    Attributes:
        members: In the order of the plan's members.
        base: The base, where the plan has one.
        stats: Kind of statistics -> one checkpoint per member.
    """

    members: tuple[Checkpoint, ...]
    base: Checkpoint | None = None
    stats: Mapping[str, tuple[Checkpoint, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        plan: Plan,
        members: Sequence[Checkpoint],
        base: Checkpoint | None = None,
        stats: Mapping[str, Sequence[Checkpoint]] | None = None,
    ) -> Inputs:
        """Checkpoints in any order, with their statistics, put in the order of the plan.

        Raises:
            MissingInput: A checkpoint that the plan names is not among them.
        """
        position = {checkpoint.id: i for i, checkpoint in enumerate(members)}
        missing = [name for name in plan.members if name not in position]
        if plan.base is not None and base is None:
            missing.append(f"{plan.base} (the base)")
        missing += [f"statistics: {kind}" for kind in plan.stats if kind not in (stats or {})]
        if missing:
            raise MissingInput(
                f"The plan names checkpoints that were not given: {', '.join(missing)}."
            )
        order = [position[name] for name in plan.members]
        return cls(
            tuple(members[i] for i in order),
            base if plan.base is not None else None,
            {kind: tuple((stats or {})[kind][i] for i in order) for kind in plan.stats},
        )

    def check_unchanged(self) -> None:
        """Raise CheckpointError where a file was written to since it was opened."""
        for file in self._files:
            file.check_unchanged()

    @cached_property
    def _files(self) -> list[SourceFile]:
        every = [*self.members, *([] if self.base is None else [self.base])]
        every += [source for sources in self.stats.values() for source in sources]
        return [file for checkpoint in every for file in source_files(checkpoint)]
