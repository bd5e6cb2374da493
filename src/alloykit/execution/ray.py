"""The blocks of a merge computed by a Ray cluster whose machines share a file system."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from alloykit.errors import MissingExtra, MissingInput
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.blocks import Cutting, step_nbytes
from alloykit.execution.output import PartialFiles
from alloykit.execution.ray_task import (
    Outcome,
    Sources,
    Work,
    compute,
    glimpse,
    not_shared,
    software,
    survey,
)
from alloykit.execution.running import Done, needs_model_state, surveyed

RUN = 256 << 20
"""Bytes of output that one task computes, about: some seconds of work."""

RETRIES = 5
"""How often a task is begun again after its worker or its node was lost, or writing failed."""


def on_cluster(sources: Sources) -> Callable[..., None]:
    """What computes blocks on a Ray cluster: takes the same arguments as ``run_blocks``.

    The cluster is the one that this process is connected to, or that ``RAY_ADDRESS`` names, or
    that runs on this machine. Its machines must see the inputs and the output under the same
    paths. Tasks whose worker or node is lost are begun again elsewhere: they write the same bytes
    to the same places.

    Args:
        sources: Where the inputs lie.

    Raises:
        MissingExtra: The package ray is not installed.
        MissingInput: No cluster is running (when blocks are computed).
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            "The executor 'ray' needs the package ray, here and on every machine of the cluster: "
            "pip install 'alloykit[ray]'."
        ) from error

    def execute(
        arithmetic: Arithmetic,
        cutting: Cutting,
        indices: Sequence[int],
        files: PartialFiles,
        *,
        threads: int,
        done: Done,
    ) -> None:
        if not indices:
            return
        with _connected():
            threads = min([threads, *_processors()])
            work = _work(arithmetic, cutting, files, sources, threads)
            size = min(RUN, cutting.nbytes // (4 * max(1, sum(_processors()))))
            batches = batched(arithmetic, cutting, indices, size)
            tasks = runs(arithmetic, cutting, indices, size)
            for outcome in _outcomes(work, cutting, batches, tasks):
                _require_shared(outcome, cutting, files)
                arithmetic.problems.extend(outcome.problems)
                for index, sound in outcome.blocks:
                    done(cutting.block(index), sound)

    return execute


def batched(
    arithmetic: Arithmetic, cutting: Cutting, indices: Sequence[int], size: int
) -> list[list[str]]:
    """Names of the tensors to survey before these blocks, in batches of about that many bytes.

    What a survey finds is small and travels to the tasks that need it. Tensors that are computed
    as a whole are not here: each task does that itself.
    """
    found: list[list[str]] = []
    room = 0
    for step in map(cutting.steps.__getitem__, surveyed(arithmetic, cutting, indices)):
        merged = arithmetic.merged(step)
        if merged.whole(cutting.size // 2) or merged.method.scope == "model":
            continue
        if room <= 0:
            found.append([])
            room = size
        found[-1].append(step.name)
        room -= step_nbytes(step)
    return found


def runs(
    arithmetic: Arithmetic, cutting: Cutting, indices: Sequence[int], size: int
) -> list[list[int]]:
    """Blocks in runs of about that many bytes, which are tasks.

    Where tensors are computed as a whole, runs hold several of the largest, and end where one
    begins: those that are cut in two are computed twice.
    """
    whole = {
        name: step_nbytes(cutting.steps[name])
        for name in surveyed(arithmetic, cutting, indices)
        if arithmetic.merged(cutting.steps[name]).whole(cutting.size // 2)
    }
    size = max([size, *(4 * nbytes for nbytes in whole.values())])
    found: list[list[int]] = []
    room, last = 0, None
    for index in indices:
        block = cutting.block(index)
        parts = cutting.parts(block) if whole else []
        inside = bool(parts) and parts[0].step.name in whole and parts[0].start > 0
        began = last is not None and last.start == 0
        if not found or (room <= 0 and (began or not inside)):
            found.append([])
            room = size
        found[-1].append(index)
        room -= block.size
        last = parts[-1] if parts else None
    return found


def _work(
    arithmetic: Arithmetic, cutting: Cutting, files: PartialFiles, sources: Sources, threads: int
) -> Work:
    merged = [step for step in arithmetic.plan.steps if step.action == "merge"]
    whole_model = any(needs_model_state(arithmetic, step) for step in merged)
    return Work(
        key=uuid.uuid4().hex,
        plan=arithmetic.plan,
        sources=sources,
        glimpses={path: glimpse(path) for path in sources.files()},
        paths=[path.absolute() for path in files.paths],
        layouts=files.layouts,
        block=cutting.size,
        threads=threads,
        device=str(arithmetic.device),
        software=software(),
        model_state=arithmetic.model_state if whole_model else None,
    )


@contextmanager
def _connected() -> Iterator[None]:
    """A connection to the cluster: the one that there is, or one for the time of the merge."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    # What Ray tells of lost workers it prints, and standard output may be read by a program.
    with redirect_stdout(sys.stderr):
        terminated = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
            raise MissingInput(
                f"No Ray cluster can be reached: {_first_line(error)} Start one (ray start "
                "--head), or name it in RAY_ADDRESS; where it asks for a token, have the same one "
                "here. Without a cluster leave out the executor."
            ) from error
        # Ray takes the signal for itself, and would end the process without a word from us.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)
        try:
            yield
        finally:
            ray.shutdown()


def _processors() -> list[int]:
    """Number of processors of every node that has any."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [int(resources["CPU"]) for resources in alive if resources.get("CPU", 0) >= 1]


def _outcomes(
    work: Work,
    cutting: Cutting,
    batches: Sequence[Sequence[str]],
    tasks: Sequence[Sequence[int]],
) -> Iterator[Outcome]:
    """What the tasks report, in the order in which they end.

    Few more of them are under way than there is room for: those that nobody waits for any more
    after an error end by themselves. (``ray.cancel`` ends this process when a task ends meanwhile,
    seen with Ray 2.60.)
    """
    import ray

    options = {
        "num_cpus": work.threads,
        "num_gpus": 0 if work.device == "cpu" else 1,
        "max_retries": RETRIES,
        "retry_exceptions": [OSError],
    }
    surveying = ray.remote(survey).options(name="alloykit survey", **options)
    computing = ray.remote(compute).options(name="alloykit merge", **options)
    shared = ray.put(work)
    batch_of = {name: index for index, names in enumerate(batches) for name in names}
    surveys: dict[int, Any] = {}
    todo = deque(tasks)
    waiting: list[Any] = []
    while todo or waiting:
        room = sum(count // work.threads for count in _processors())
        while todo and len(waiting) < max(2, 2 * room):
            indices = todo.popleft()
            needed = _batches(cutting, indices, batch_of)
            for index in needed - surveys.keys():
                surveys[index] = surveying.remote(shared, batches[index])
            waiting.append(computing.remote(shared, indices, *(surveys[i] for i in needed)))
        ready, waiting = ray.wait(waiting)
        yield _result(ready[0])


def _batches(cutting: Cutting, indices: Sequence[int], batch_of: Mapping[str, int]) -> set[int]:
    """Numbers of the batches of surveys that these blocks wait for."""
    if not batch_of:
        return set()
    parts = (part for index in indices for part in cutting.parts(cutting.block(index)))
    return {batch_of[part.step.name] for part in parts if part.step.name in batch_of}


def _result(reference: Any) -> Outcome:
    import ray

    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        # As an error of the system, so that what was done is kept for --resume.
        raise ConnectionError(
            f"a task on the Ray cluster failed in spite of {RETRIES} retries: {_first_line(error)}"
        ) from error
    return outcome


def _require_shared(outcome: Outcome, cutting: Cutting, files: PartialFiles) -> None:
    """Refuse blocks that were written to another machine's own disk."""
    block = cutting.block(min(index for index, _ in outcome.blocks))
    if zlib.crc32(files.head(block)) != outcome.check:
        raise not_shared(files.paths[block.file], outcome.node)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
