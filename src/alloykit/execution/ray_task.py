"""What a worker of a Ray cluster does: open the inputs by path, compute blocks, write them."""

from __future__ import annotations

import hashlib
import platform
import socket
import zlib
from collections import ChainMap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from alloykit.checkpoints.digests import WEIGHT_FILES
from alloykit.checkpoints.layout import Layout
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.blocks import Block, Cutting
from alloykit.execution.inputs import Inputs
from alloykit.execution.output import PartialFiles
from alloykit.execution.plan import Plan
from alloykit.execution.problems import Count, Problems
from alloykit.execution.running import run_blocks

PIECES, PIECE = 8, 4096
"""How many pieces of a file are compared, and their bytes."""


@dataclass(frozen=True)
class Sources:
    """Where the inputs of a plan lie. Paths travel to the workers; tensors do not.

    Attributes:
        members: Id of each member -> its path.
        base: Path of the base.
        stats: Kind of statistics -> one path per member, in the order of ``members``.
        trust_pickle: Whether pickles with unknown classes are opened.
    """

    members: Mapping[str, str]
    base: str | None = None
    stats: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trust_pickle: bool = False

    def files(self) -> list[str]:
        """All paths, without the entries that some name."""
        every = [*self.members.values(), *([self.base] if self.base else [])]
        every += [path for paths in self.stats.values() for path in paths]
        return [path if Path(path).exists() else path.rpartition("#")[0] for path in every]

    def open(self, plan: Plan, device: str) -> Arithmetic:
        """What computes the plan."""
        trust = self.trust_pickle
        members = [
            open_checkpoint(path, name=name, trust_pickle=trust)
            for name, path in self.members.items()
        ]
        base = open_checkpoint(self.base, trust_pickle=trust) if self.base else None
        stats = {
            kind: [open_checkpoint(path) for path in each] for kind, each in self.stats.items()
        }
        return Arithmetic(plan, Inputs.of(plan, members, base, stats), device)


@dataclass(frozen=True)
class Work:
    """What every task of one run has in common.

    Attributes:
        key: Names the run, so that a worker opens its inputs once.
        plan: The plan.
        sources: Where its inputs lie.
        glimpses: Path of each input -> what the driver sees there.
        paths: The files to write into.
        layouts: Their layouts.
        block: Bytes of a block.
        threads: Threads of a task.
        device: Where a task computes.
        software: What must be the same everywhere for the bits to be.
        model_state: What a survey of the whole model found, where there is one.
    """

    key: str
    plan: Plan
    sources: Sources
    glimpses: Mapping[str, str]
    paths: Sequence[Path]
    layouts: Sequence[Layout]
    block: int
    threads: int
    device: str
    software: Mapping[str, str]
    model_state: Any = None


@dataclass(frozen=True)
class Outcome:
    """What a task reports.

    Attributes:
        blocks: Number of each block that is safe on disk, and whether its values were sound.
        problems: Values that cannot be merged.
        check: CRC-32 of the first bytes that it wrote, as it reads them.
        node: Name of the machine.
    """

    blocks: Sequence[tuple[int, bool]]
    problems: Sequence[Count]
    check: int
    node: str


def survey(work: Work, names: Sequence[str]) -> dict[str, Any]:
    """A task: what is to be known of these tensors before they are merged.

    Values that cannot be merged are counted where the blocks are.
    """
    arithmetic = _opened(work)
    steps = {step.name: step for step in work.plan.steps}
    merged = [arithmetic.merged(steps[name]) for name in names]
    one = partial(torch.set_num_threads, 1)
    with ThreadPoolExecutor(work.threads, initializer=one) as pool:
        states = pool.map(lambda each: each.prepare(whole=False), merged)
        return dict(zip(names, states, strict=True))


def compute(work: Work, indices: Sequence[int], *surveys: Mapping[str, Any]) -> Outcome:
    """A task: compute these blocks, and write them where they belong.

    Args:
        work: What all tasks have in common.
        indices: The blocks.
        surveys: What ``survey`` tasks found of the tensors in them.
    """
    arithmetic = _opened(work)
    arithmetic.problems = Problems()
    cutting = Cutting(work.plan, work.layouts, work.block)
    done: list[tuple[int, bool]] = []

    def note(block: Block, sound: bool) -> None:
        done.append((block.index, sound))

    try:
        files = PartialFiles(work.paths, work.layouts, create=False)
    except FileNotFoundError as error:
        raise not_shared(work.paths[0]) from error
    try:
        states = dict(ChainMap(*map(dict, surveys)))
        run_blocks(
            arithmetic, cutting, indices, files, threads=work.threads, done=note, states=states
        )
        arithmetic.inputs.check_unchanged()
        files.sync()
        check = zlib.crc32(files.head(cutting.block(indices[0])))
    finally:
        files.close()
    return Outcome(done, arithmetic.problems.counts(), check, socket.gethostname())


_held: dict[str, Arithmetic] = {}


def _opened(work: Work) -> Arithmetic:
    """The inputs, which this process opens once for all of its tasks of one run."""
    if work.key not in _held:
        _held.clear()
        node = socket.gethostname()
        for what, version in software().items():
            if version != work.software[what]:
                raise CheckpointError(
                    f"{node} has {what} {version}, and the merge was begun with "
                    f"{work.software[what]}: the bits could differ. Install the same everywhere."
                )
        for path, expected in work.glimpses.items():
            if glimpse(path) != expected:
                raise CheckpointError(
                    f"{shown(path)} is another file on {node} than where the merge was begun. "
                    "Machines must share the models, or have equal copies under equal paths."
                )
        arithmetic = work.sources.open(work.plan, work.device)
        if work.model_state is not None:
            arithmetic.model_state = work.model_state
        _held[work.key] = arithmetic
    return _held[work.key]


def glimpse(path: str) -> str:
    """A digest of sizes, and of a few pieces, of a model's files: what takes no time to compare."""
    place = Path(path)
    inside = {file for pattern in WEIGHT_FILES for file in place.glob(pattern)}
    digest = hashlib.sha256()
    for each in sorted(inside) if place.is_dir() else [place]:
        file = SourceFile(each)
        digest.update(f"{each.name} {file.size}\n".encode())
        room = max(0, file.size - PIECE)
        for start in range(0, room + 1, max(1, room // PIECES)):
            digest.update(file.read(start, min(start + PIECE, file.size)))
    return digest.hexdigest()


def software() -> dict[str, str]:
    """What the bits may depend on, besides the work."""
    versions = {package: metadata.version(package) for package in ("alloykit", "torch", "numpy")}
    return {**versions, "processor": platform.machine()}


def not_shared(path: Path, node: str | None = None) -> CheckpointError:
    """The error for an output that some machine does not see."""
    return CheckpointError(
        f"{node or socket.gethostname()} does not share the folder {shown(str(path.parent))} with "
        "the machine that began the merge. Write to a file system that all machines have."
    )
