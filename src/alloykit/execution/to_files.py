"""Run a plan straight into files that appear whole or not at all, and can be continued."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from alloykit.checkpoints.layout import Layout, lay_out, shards
from alloykit.checkpoints.wording import shown
from alloykit.checkpoints.writing import atomic_write
from alloykit.errors import AlloyError, CheckpointError, InvalidParameter
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.blocks import Block, Cutting
from alloykit.execution.inputs import Inputs
from alloykit.execution.journal import Journal
from alloykit.execution.limits import Limits
from alloykit.execution.output import (
    INDEX,
    PartialFiles,
    Target,
    check_folder,
    discard,
    publish_target,
)
from alloykit.execution.plan import Plan
from alloykit.execution.run import Progress
from alloykit.execution.running import run_blocks

Execute = Callable[..., None]
"""What computes the blocks: ``running.run_blocks``, or the same on a cluster."""


@dataclass(frozen=True)
class Destination:
    """Where a result goes.

    Attributes:
        path: A ``.safetensors`` file; or a folder, with ``max_shard_size``.
        metadata: Text for the header of every file.
        max_shard_size: Bytes of a shard, or None for a single file.
        overwrite: Whether what is there may be replaced.
        resume: Continue what a killed run left; and keep what an interrupted one leaves.
        inputs: Files that must not be replaced.
        identity: What else must be the same for a run to be continued: the inputs' sizes and
            times of change.
    """

    path: Path
    metadata: Mapping[str, str]
    max_shard_size: int | None = None
    overwrite: bool = False
    resume: bool = False
    inputs: Sequence[Path] = ()
    identity: Sequence[str] = ()


def merge_to_files(
    arithmetic: Arithmetic,
    destination: Destination,
    *,
    limits: Limits | None = None,
    execute: Execute = run_blocks,
    progress: Progress | None = None,
) -> Path:
    """Compute a plan's result into a file, or a folder of shards.

    Until everything is written and safe on disk the files bear hidden names beside the target,
    with a journal of what is done; on an error they are removed.

    Args:
        arithmetic: Computes the result.
        destination: Where it goes.
        limits: What may be taken of the machine.
        execute: What computes the blocks.
        progress: Called with the bytes done and the bytes in all.

    Raises:
        CheckpointError: Values that cannot be merged, inputs that change, writing that fails.
        OutputExists: Something is there that must not be replaced, or is being written.
    """
    limits = limits or Limits()
    plan = arithmetic.plan
    groups, target = _files(plan, destination)
    with _clear_errors(target):
        check_folder(target, destination.overwrite, list(destination.inputs))
        layouts = [lay_out(group, destination.metadata) for group in groups]
        threads, block = limits.fitted(arithmetic)
        journal = Journal(target.journal, _identity(arithmetic, layouts, destination), block)
        begun = False
        try:
            journal.lock()
            cutting, done, files = _begun(plan, target, layouts, journal, destination.resume)
            begun = True
            tracker = _Tracker(
                cutting, done, files, journal, arithmetic.inputs, limits.sync, progress
            )
            todo = [index for index in range(len(cutting)) if index not in done]
            with _closed(files, tracker if destination.resume else None):
                execute(arithmetic, cutting, todo, files, threads=threads, done=tracker.written)
                arithmetic.inputs.check_unchanged()
                arithmetic.problems.require_none()
                _write_index(target, groups)
                files.finish()
            publish_target(target, overwrite=destination.overwrite)
            journal.remove()
        except BaseException as error:
            hopeless = begun and isinstance(error, AlloyError)
            useful = destination.resume and journal.used and target.partial.exists()
            if journal.locked and (hopeless or not useful):
                discard(target)
                journal.remove()
            raise
        finally:
            journal.close()
    return target.path


@contextmanager
def _clear_errors(target: Target) -> Iterator[None]:
    """Say what the system refused, of which file."""
    try:
        yield
    except AlloyError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{shown(str(target.path))} was not written: {error.strerror or error}."
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _out_of_memory(error):
            raise
        raise InvalidParameter(
            f"{shown(str(target.path))} was not written: there was not enough memory. Take fewer "
            "threads, or set 'memory'."
        ) from error


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def _closed(files: PartialFiles, tracker: _Tracker | None) -> Iterator[None]:
    """Close the files in the end; where the work is interrupted, note first how far it came."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if tracker is not None:
            with suppress(OSError, CheckpointError):
                tracker.note()
        raise
    finally:
        files.close()


def _files(plan: Plan, destination: Destination) -> tuple[list[dict], Target]:  # type: ignore[type-arg]
    specs = plan.specs()
    if destination.max_shard_size is None:
        return [specs], Target(destination.path)
    groups = shards(specs, destination.max_shard_size)
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    return groups, Target(destination.path, tuple(names))


def _identity(arithmetic: Arithmetic, layouts: Sequence[Layout], destination: Destination) -> str:
    """A digest of all that the bytes depend on."""
    digest = hashlib.sha256(arithmetic.plan.to_json().encode())
    for layout in layouts:
        digest.update(layout.header)
    software = [torch.__version__, arithmetic.device.type]
    digest.update(json.dumps([*software, *destination.identity]).encode())
    return digest.hexdigest()


def _begun(
    plan: Plan, target: Target, layouts: Sequence[Layout], journal: Journal, resume: bool
) -> tuple[Cutting, set[int], PartialFiles]:
    """The files as a killed run left them, or new ones; and which blocks are done."""
    if resume and journal.used:
        head, done = journal.read()
        if done and head["identity"] != journal.head["identity"]:
            raise CheckpointError(
                f"{shown(str(target.path))} cannot be continued: the inputs, the settings or the "
                "versions are not those of the run that was killed. Run without --resume to start "
                "anew."
            )
        if done:
            # What was removed or cut meanwhile is made anew.
            with suppress(CheckpointError, FileNotFoundError):
                files = PartialFiles(target.files(), layouts, create=False)
                return Cutting(plan, layouts, int(str(head["block"]))), done, files
    discard(target)
    journal.begin()
    if target.names:
        target.partial.mkdir()
    files = PartialFiles(target.files(), layouts, create=True)
    return Cutting(plan, layouts, int(str(journal.head["block"]))), set(), files


class _Tracker:
    """Counts what is written, tells it, and notes in the journal what is safe on disk."""

    def __init__(
        self,
        cutting: Cutting,
        done: set[int],
        files: PartialFiles,
        journal: Journal,
        inputs: Inputs,
        sync: int,
        progress: Progress | None,
    ) -> None:
        self._files = files
        self._journal = journal
        self._inputs = inputs
        self._every = sync
        self._progress = progress
        self._total = cutting.nbytes
        self._bytes = sum(cutting.block(index).size for index in done)
        self._waiting: list[int] = []
        self._unsynced = 0
        self._lock = threading.Lock()

    def written(self, block: Block, sound: bool) -> None:
        """Take note of a block. Those with problems are computed again by a later run."""
        with self._lock:
            self._bytes += block.size
            self._unsynced += block.size
            if sound:
                self._waiting.append(block.index)
            if self._progress is not None:
                self._progress("", self._bytes, self._total)
            if self._unsynced >= self._every:
                self._note()

    def note(self) -> None:
        """Make durable what was written, and note it."""
        with self._lock:
            self._note()

    def _note(self) -> None:
        # Out of hand first: what a failed sync was about is lost, though the next one may succeed.
        waiting, self._waiting, self._unsynced = self._waiting, [], 0
        self._inputs.check_unchanged()
        self._files.sync()
        if waiting:
            self._journal.add(waiting)


def _write_index(target: Target, groups: Sequence[Mapping]) -> None:  # type: ignore[type-arg]
    if not target.names:
        return
    weight_map = {n: file for file, g in zip(target.names, groups, strict=True) for n in g}
    total = sum(spec.nbytes for group in groups for spec in group.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (target.partial / INDEX).unlink(missing_ok=True)
    with atomic_write(target.partial / INDEX) as file:
        file.write(json.dumps(index, indent=2, ensure_ascii=False).encode())
