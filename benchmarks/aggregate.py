"""Aggregating clients: ours, Flower's strategies, and reading the updates once, side by side.

Run it in an environment that has Flower (``make flower`` makes one):

    python benchmarks/aggregate.py

For 10, 100 and 500 clients of 1 M parameters and 20 of 25 M it takes the same replies, as they
arrive from the network, through Flower's own strategies and through alloykit, in turns in one
process. Time is processor time on one thread, the best of some rounds. Memory is what the
process takes at most beyond the replies, in models (one model is its parameters in float32). The
floor is reading every reply once, by the dot product of its numbers with themselves.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SETTINGS = ((10, 1, 9), (100, 1, 5), (500, 1, 3), (20, 25, 3))
"""Clients, million parameters, rounds of measuring."""

LAYERS = 10
HEAD = """# Aggregating clients

Made by `python benchmarks/aggregate.py` in an environment with Flower, in one run; load average
{:.1f}. Processor seconds on one thread; × is the ratio to reading all replies once; models is
memory beyond the replies; faster is Flower's time over ours, in processor seconds on one thread and
in wall seconds with the threads that each takes by default; apart is how far the results differ.

| clients | method | floor s | Flower s | × | models | ours s | × | models | faster | wall | apart |
"""

OUTPUT = Path(__file__).parent / "output" / "aggregate.md"


Run = Callable[[list[Any]], Any]
"""Replies -> the new model, by name."""


@dataclass(frozen=True)
class Method:
    """One rule, by Flower and by us.

    Attributes:
        name: What the table calls it.
        flower: Class and arguments of Flower's strategy.
        ours: Name and parameters of our aggregator.
        checked: Whether ours looks at values and norms.
    """

    name: str
    flower: tuple[str, Mapping[str, Any]]
    ours: tuple[str, Mapping[str, Any]]
    checked: bool = True


METHODS = (
    Method("FedAvg without checks", ("FedAvg", {}), ("fedavg", {}), checked=False),
    Method("FedAvg", ("FedAvg", {}), ("fedavg", {})),
    Method("median", ("FedMedian", {}), ("median", {})),
    Method("trimmed mean (0.2)", ("FedTrimmedAvg", {"beta": 0.2}), ("trimmed_mean", {"trim": 0.2})),
    Method("Krum (f = 2)", ("Krum", {"num_malicious_nodes": 2}), ("krum", {"num_malicious": 2})),
)


def measure(clients: int, millions: int, rounds: int) -> dict[str, Any]:
    """One setting: seconds and models of memory of every method, ours and Flower's."""
    import numpy as np

    logging.getLogger("flwr").setLevel(logging.WARNING)
    server, sent = arrays_sent(clients, millions * 1_000_000)
    views = [np.frombuffer(a.data, np.float32, offset=128) for each in sent for a in each.values()]
    floors: list[float] = []
    jobs: dict[tuple[str, str], Run] = {}
    for method in METHODS:
        jobs[method.name, "Flower"] = flowers(method, server, clients)
        jobs[method.name, "alloykit"] = ours(method, server)
    for run in warm_ups(clients):
        run()
    seconds: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    memory: dict[tuple[str, str], float] = {}
    walls: dict[tuple[str, str], float] = {}
    apart: dict[str, float] = {}
    results: dict[str, Any] = {}
    for turn in range(rounds):
        begun = time.process_time()
        for view in views:
            np.dot(view, view)
        floors.append(time.process_time() - begun)
        for job, run in jobs.items():
            if turn and job[1] == "Flower" and seconds[job][0] > 30:
                continue  # Slow enough for one look.
            took, passed, taken, result = costs(run, replies_with(sent))
            seconds[job].append(took)
            walls[job] = min(walls.get(job, passed), passed)
            memory[job] = max(memory.get(job, 0.0), taken / (4e6 * millions))
            if turn == 0:
                results[job[1]] = result
                # Ours comes after Flower's.
                apart[job[0]] = difference(results["Flower"], result)
            del result
    return {
        "clients": clients,
        "millions": millions,
        "floor": min(floors),
        "load": os.getloadavg()[0],
        "rows": [
            {
                "method": method.name,
                **{
                    who: {
                        "seconds": min(seconds[method.name, who]),
                        "models": memory[method.name, who],
                        "wall": walls[method.name, who],
                    }
                    for who in ("Flower", "alloykit")
                },
                "difference": apart[method.name],
            }
            for method in METHODS
        ],
    }


def warm_ups(clients: int) -> list[Callable[[], Any]]:
    """Every job on tiny models: what libraries set up once is not what aggregating takes."""
    server, sent = arrays_sent(clients, 1000)
    made = [make for m in METHODS for make in (flowers(m, server, clients), ours(m, server))]
    return [partial(make, replies_with(sent)) for make in made]


def arrays_sent(clients: int, parameters: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The server's model, and what each client sends: half of it in one layer."""
    import numpy as np
    from flwr.app import Array

    sizes = [parameters // 2, *[parameters // (2 * (LAYERS - 1))] * (LAYERS - 1)]
    random = np.random.default_rng(0)
    server = {
        f"layer.{i}": np.float32(0.05) * random.standard_normal(size, np.float32)
        for i, size in enumerate(sizes)
    }
    sent = [
        {
            name: Array(own + np.float32(0.01) * random.standard_normal(own.shape, np.float32))
            for name, own in server.items()
        }
        for _ in range(clients)
    ]
    return server, sent


def replies_with(sent: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Replies that hold these arrays: new ones for each run, as some strategies empty them."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("run_id", "node_id", "task_id"):
        setattr(TaskIdentity, f"_{name}", 1)
    replies = []
    for client, arrays in enumerate(sent):
        metrics = MetricRecord({"num-examples": 50 + client % 7})
        content = RecordDict({"arrays": ArrayRecord(dict(arrays)), "metrics": metrics})
        replies.append(Message(content, message_type="train", dst_node_id=client + 1))
    return replies


def flowers(method: Method, server: Mapping[str, Any], clients: int) -> Run:
    """A round of Flower's strategy on these replies."""
    from unittest.mock import Mock

    from flwr.app import Array, ArrayRecord, ConfigRecord
    from flwr.serverapp import strategy

    name, settings = method.flower
    grid = Mock()
    grid.get_node_ids.return_value = range(1, clients + 1)
    arrays = ArrayRecord({name: Array(own) for name, own in server.items()})

    def run(replies: list[Any]) -> Any:
        made = getattr(strategy, name)(**settings)
        list(made.configure_train(1, arrays, ConfigRecord(), grid))
        found, _ = made.aggregate_train(1, replies)
        return {name: array.numpy() for name, array in found.items()}

    return run


def ours(method: Method, server: Mapping[str, Any]) -> Run:
    """The same by alloykit, as its plug-in for Flower reads replies."""
    from alloykit.federation.aggregating import aggregate_updates
    from alloykit.federation.checks import Checks
    from alloykit.federation.choosing import as_aggregator
    from alloykit.federation.update import Update
    from alloykit.plugins.flower_arrays import read_arrays

    aggregator = as_aggregator(*method.ours)
    checks = Checks(values=method.checked)

    def run(replies: list[Any]) -> Any:
        updates = [
            Update(
                f"{reply.metadata.dst_node_id:04}",
                read_arrays(reply.content["arrays"])[0],
                num_examples=reply.content["metrics"]["num-examples"],
            )
            for reply in replies
        ]
        found = aggregate_updates(server, updates, aggregator, checks=checks)
        return {name: tensor.numpy() for name, tensor in found.tensors.items()}

    return run


def costs(run: Run, replies: list[Any]) -> tuple[float, float, int, Any]:
    """Processor and wall seconds of a call, bytes that the process grew by, and the result."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
    begun, wall = time.process_time(), time.perf_counter()
    result = run(replies)
    took, passed = time.process_time() - begun, time.perf_counter() - wall
    return took, passed, resident("VmHWM") - before, result


def resident(mark: str) -> int:
    """What the process has in memory, or had at most, in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(mark))
    return int(line.split()[1]) * 1024


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest difference of two results."""
    return max(float(abs(one[name] - other[name]).max()) for name in other)


def table(found: list[dict[str, Any]]) -> str:
    """What was measured, as Markdown."""
    lines = [
        HEAD.format(statistics.mean(each["load"] for each in found)),
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        for row in each["rows"]:
            theirs, own = row["Flower"], row["alloykit"]
            lines.append(
                f"| {each['clients']} of {each['millions']} M | {row['method']} "
                f"| {each['floor']:.4f} "
                f"| {theirs['seconds']:.3f} | {theirs['seconds'] / each['floor']:.1f} "
                f"| {theirs['models']:.1f} "
                f"| {own['seconds']:.3f} | {own['seconds'] / each['floor']:.1f} "
                f"| {own['models']:.1f} "
                f"| {theirs['seconds'] / own['seconds']:.1f} | {row['faster']:.1f} "
                f"| {row['difference']:.1g} |"
            )
    return "\n".join([*lines, ""])


def in_a_process(setting: Sequence[int], threads: Mapping[str, str]) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--one", *map(str, setting)]
    printed = subprocess.run(
        command, env={**os.environ, **threads}, stdout=subprocess.PIPE, check=True
    ).stdout
    return dict(json.loads(printed.splitlines()[-1]))


def main() -> None:
    """Measure every setting in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*given.one)))
        return
    found = []
    for setting in SETTINGS:
        measured, threaded = (in_a_process(setting, threads) for threads in (ONE_THREAD, {}))
        for row, other in zip(measured["rows"], threaded["rows"], strict=True):
            row["faster"] = other["Flower"]["wall"] / other["alloykit"]["wall"]
        found.append(measured)
        print(table(found[-1:]).partition("|---|")[2].partition("\n")[2])
    given.output.write_text(table(found))


if __name__ == "__main__":
    main()
