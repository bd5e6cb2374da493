"""The blocks of a merge computed by a Ray cluster whose machines share a file system."""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alloykit.checkpoints.digests import fingerprint
from alloykit.errors import MissingExtra, MissingInput
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.blocks import Cutting
from alloykit.execution.output import PartialFiles
from alloykit.execution.ray_task import Outcome, Sources, Work, compute, not_shared, software
from alloykit.execution.running import Done, needs_model_state, surveyed_names

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
            for outcome in _outcomes(work, runs(arithmetic, cutting, indices, _size(cutting))):
                _require_shared(outcome, cutting, files)
                arithmetic.problems.extend(outcome.problems)
                for index, sound in outcome.blocks:
                    done(cutting.block(index), sound)

    return execute


def runs(
    arithmetic: Arithmetic, cutting: Cutting, indices: Sequence[int], size: int
) -> list[list[int]]:
    """Blocks in runs of about that many bytes, which are tasks.

    A tensor that is surveyed before it is merged is not cut in two: each task would survey it.
    """
    surveyed = surveyed_names(arithmetic, cutting)
    found: list[list[int]] = []
    room, last = 0, ""
    for index in indices:
        block = cutting.block(index)
        names = [part.step.name for part in cutting.parts(block)] if surveyed else [""]
        if not found or (room <= 0 and not (names[0] == last and last in surveyed)):
            found.append([])
            room = size
        found[-1].append(index)
        room -= block.size
        last = names[-1]
    return found


def _work(
    arithmetic: Arithmetic, cutting: Cutting, files: PartialFiles, sources: Sources, threads: int
) -> Work:
    merged = [step for step in arithmetic.plan.steps if step.action == "merge"]
    surveyed = any(needs_model_state(arithmetic, step) for step in merged)
    return Work(
        key=uuid.uuid4().hex,
        plan=arithmetic.plan,
        sources=sources,
        fingerprints={path: fingerprint(path) for path in sources.files()},
        paths=[path.absolute() for path in files.paths],
        layouts=files.layouts,
        block=cutting.size,
        threads=threads,
        device=str(arithmetic.device),
        software=software(),
        model_state=arithmetic.model_state if surveyed else None,
    )


@contextmanager
def _connected() -> Iterator[None]:
    """A connection to the cluster: the one that there is, or one for the time of the merge."""
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
    except ConnectionError as error:
        raise MissingInput(
            "No Ray cluster was found. Start one (ray start --head), or name it in RAY_ADDRESS; "
            "without a cluster leave out the executor."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _processors() -> list[int]:
    """Number of processors of every node that has any."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [int(resources["CPU"]) for resources in alive if resources.get("CPU", 0) >= 1]


def _size(cutting: Cutting) -> int:
    """Bytes of a run: small enough that every processor gets some."""
    return min(RUN, cutting.nbytes // (4 * max(1, sum(_processors()))))


def _outcomes(work: Work, tasks: Sequence[Sequence[int]]) -> Iterator[Outcome]:
    """What the tasks report, in the order in which they end; on an error the others are ended."""
    import ray

    task = ray.remote(compute).options(
        name="alloykit merge",
        num_cpus=work.threads,
        num_gpus=0 if work.device == "cpu" else 1,
        max_retries=RETRIES,
        retry_exceptions=[OSError],
    )
    shared = ray.put(work)
    waiting = [task.remote(shared, indices) for indices in tasks]
    try:
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield _result(ready[0])
    finally:
        for each in waiting:
            ray.cancel(each, force=True)


def _result(reference: Any) -> Outcome:
    import ray

    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        # As an error of the system, so that what was done is kept for --resume.
        first = str(error).strip().partition("\n")[0]
        raise ConnectionError(
            f"the Ray cluster lost a task {RETRIES + 1} times: {first}"
        ) from error
    return outcome


def _require_shared(outcome: Outcome, cutting: Cutting, files: PartialFiles) -> None:
    """Refuse blocks that were written to another machine's own disk."""
    block = cutting.block(min(index for index, _ in outcome.blocks))
    if zlib.crc32(files.head(block)) != outcome.check:
        raise not_shared(files.paths[block.file], outcome.node)
