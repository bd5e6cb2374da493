"""A cluster of two nodes on this machine: the same bits, whatever is lost on the way."""

from __future__ import annotations

import hashlib
import os
import pickle
import secrets
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import alloykit
from alloykit.checkpoints.layout import lay_out
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError, MissingExtra, MissingInput
from alloykit.execution import limits
from alloykit.execution import ray as on_ray
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.blocks import Cutting
from alloykit.execution.inputs import Inputs
from alloykit.execution.plan import plan_merge
from alloykit.execution.ray_task import Sources, Work, compute, glimpse, software, survey
from alloykit.execution.running import run_blocks

# Ray leaves sockets and processes to be cleaned up at exit, and announces changes to come.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("ray")]

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
WAIT = 60
BLOCK = 1 << 16


@pytest.fixture(scope="module")
def cluster():
    """A head that computes nothing, and one node that does; reached with a token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20,
            "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 3},
        }  # fmt: skip
        started = Cluster(initialize_head=True, head_node_args=head)
        try:
            started.add_node(**NODE)
            ray.init(started.address, log_to_driver=False, logging_level="ERROR")
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(limits, "BLOCK", BLOCK)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A base and three models of 2.9 MB: tensors larger than a block, and smaller."""
    folder = tmp_path_factory.mktemp("models")
    shapes = {f"layers.{i}.weight": (301, 517 + i) for i in range(9)} | {"norm": (517,)}
    paths = {}
    for seed, name in enumerate(("base", "a", "b", "c")):
        generator = torch.Generator().manual_seed(seed)
        state = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
        state["steps"] = torch.arange(3)
        save_file(state, folder / f"{name}.safetensors")
        paths[name] = str(folder / f"{name}.safetensors")
    return paths


def merged(files, output: Path, method: str = "ties", **options) -> str:
    """SHA-256 of what a merge writes, in blocks of 64 KiB."""
    models = [files[name] for name in "abc"]
    alloykit.merge(models, method, base=files["base"], output=output, threads=1, **options)
    return hashlib.sha256(output.read_bytes()).hexdigest()


def planned(files, method="ties", **parameters) -> Arithmetic:
    members = [open_checkpoint(files[name]) for name in "abc"]
    base = open_checkpoint(files["base"])
    plan = plan_merge(members, method, parameters, base=base)
    return Arithmetic(plan, Inputs.of(plan, members, base))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("karcher", {}),
        ("dare_ties", {"density": 0.5}),
        ("ties", {"density": 0.3, "scope": "model"}),
        ("iso_c", {}),
        ("model_stock", {"filter_wise": True}),
    ],
)
def test_a_cluster_writes_the_bits_that_one_machine_writes(
    cluster, files, tmp_path, method, parameters
):
    local = merged(files, tmp_path / "a.safetensors", method, parameters=parameters)
    path = tmp_path / "b.safetensors"
    assert merged(files, path, method, parameters=parameters, executor="ray") == local
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_shards_are_written_by_several_workers(cluster, files, tmp_path):
    models = [files[name] for name in "abc"]
    for executor in ("local", "ray"):
        alloykit.merge(models, output=tmp_path / executor, max_shard_size="1MB", executor=executor)
    names = sorted(each.name for each in (tmp_path / "local").iterdir())
    assert len(names) == 4
    assert names == sorted(each.name for each in (tmp_path / "ray").iterdir())
    for name in names:
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


def test_a_killed_worker_is_replaced(cluster, files, tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()

    def dying(work, indices, *surveys):
        from alloykit.execution.ray_task import compute

        attempt = len(list(marks.glob(f"{indices[0]}-*")))
        (marks / f"{indices[0]}-{attempt}").touch()
        if 0 < indices[0] <= 20 and attempt < 2:
            compute(work, indices[: len(indices) // 2 + 1], *surveys)
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(work, indices, *surveys)

    expected = merged(files, tmp_path / "a.safetensors")
    monkeypatch.setattr(on_ray, "compute", dying)
    monkeypatch.setattr(on_ray, "RUN", 1 << 20)
    assert merged(files, tmp_path / "b.safetensors", executor="ray") == expected
    attempts = [path.name.rpartition("-")[2] for path in marks.iterdir()]
    assert [attempts.count(each) for each in "0123"] == [4, 1, 1, 0]


def test_work_of_a_killed_node_is_done_by_another(cluster, files, tmp_path, monkeypatch):
    hanging = tmp_path / "hanging"
    node = cluster.add_node(resources={"doomed": 1}, **NODE)

    doomed = node.node_id

    def stuck(work, indices, *surveys):
        import ray

        from alloykit.execution.ray_task import compute

        here = ray.get_runtime_context().get_node_id()
        if here == doomed and not hanging.exists():
            compute(work, indices[:1], *surveys)
            hanging.touch()
            time.sleep(WAIT)
        deadline = time.monotonic() + WAIT
        while not hanging.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return compute(work, indices, *surveys)

    def kill(*_) -> None:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)

    expected = merged(files, tmp_path / "a.safetensors")
    monkeypatch.setattr(on_ray, "compute", stuck)
    assert merged(files, tmp_path / "b.safetensors", executor="ray", progress=kill) == expected
    assert hanging.exists()
    assert node not in cluster.worker_nodes


@pytest.mark.parametrize(("first", "second"), [("ray", "local"), ("local", "ray")])
def test_what_one_engine_began_the_other_continues(cluster, files, tmp_path, first, second):
    told: list[int] = []

    def interrupt(_: str, done: int, total: int) -> None:
        told.append(done)
        if done > total // 3:
            raise KeyboardInterrupt

    path = tmp_path / "b.safetensors"
    expected = merged(files, tmp_path / "a.safetensors")
    with pytest.raises(KeyboardInterrupt):
        merged(files, path, executor=first, resume=True, progress=interrupt)
    assert not path.exists()
    resumed: list[int] = []
    done = merged(files, path, executor=second, resume=True, progress=lambda *at: resumed.append(at[1]))  # fmt: skip
    assert done == expected
    assert len(resumed) < 45
    assert resumed[0] > told[-1]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_values_that_cannot_be_merged_are_named_once(cluster, files, tmp_path):
    state = {name: open_checkpoint(files["a"]).read(name) for name in ("norm", "steps")}
    bad = state | {"norm": torch.full((517,), torch.nan).bfloat16()}
    for name, each in (("good", state), ("bad", bad)):
        save_file(each, tmp_path / f"{name}.safetensors")
    models = [tmp_path / "good.safetensors", tmp_path / "bad.safetensors"]
    with pytest.raises(CheckpointError, match=r"1 value problem\.\n  norm   bad: 517 NaN"):
        alloykit.merge(models, output=tmp_path / "o.safetensors", executor="ray")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "bad.safetensors",
        "good.safetensors",
    ]


def test_an_output_that_a_worker_writes_elsewhere_is_noticed(cluster, files, tmp_path, monkeypatch):
    def elsewhere(work, indices, *surveys):
        import shutil
        from dataclasses import replace

        from alloykit.execution.ray_task import compute

        copy = work.paths[0].with_name("copy")
        shutil.copyfile(work.paths[0], copy)
        return compute(replace(work, paths=[copy]), indices, *surveys)

    monkeypatch.setattr(on_ray, "compute", elsewhere)
    with pytest.raises(CheckpointError, match="does not share the folder"):
        merged(files, tmp_path / "o.safetensors", executor="ray")
    assert not (tmp_path / "o.safetensors").exists()


def test_failed_writing_is_tried_again_and_then_told(cluster, files, tmp_path, monkeypatch):
    tries = tmp_path / "tries"
    tries.write_text("")

    def full(work, indices, *surveys):
        import errno

        with tries.open("a") as file:
            file.write("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(on_ray, "compute", full)
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    monkeypatch.setattr(on_ray, "RUN", 1 << 30)
    with pytest.raises(CheckpointError, match=r"o\.safetensors was not written: No space left"):
        merged(files, tmp_path / "o.safetensors", "linear", executor="ray")
    assert len(tries.read_text()) >= 2
    assert [each.name for each in tmp_path.iterdir()] == ["tries"]


def work_of(arithmetic: Arithmetic, files, path: Path) -> Work:
    sources = Sources({name: files[name] for name in "abc"}, files["base"])
    return Work(
        key="run", plan=arithmetic.plan, sources=sources,
        glimpses={name: glimpse(name) for name in sources.files()}, paths=[path],
        layouts=[lay_out(arithmetic.plan.specs(), {})], block=BLOCK, threads=1, device="cpu",
        software=software(),
    )  # fmt: skip


def test_a_worker_with_other_files_or_software_says_so(files, tmp_path):
    work = work_of(planned(files), files, tmp_path / "missing")
    with pytest.raises(CheckpointError, match="does not share the folder"):
        compute(work, [0])
    swapped = replace(work, key="other", glimpses={files["a"]: glimpse(files["b"])})
    with pytest.raises(CheckpointError, match=r"a\.safetensors is another file on"):
        compute(swapped, [0])
    older = replace(work, key="older", software=software() | {"torch": "2.10.0"})
    with pytest.raises(CheckpointError, match=r"has torch 2\..*begun with 2\.10\.0"):
        compute(older, [0])


def test_paths_travel_and_tensors_do_not(files, tmp_path):
    arithmetic = planned(files)
    work = work_of(arithmetic, files, tmp_path / "o")
    names = [step.name for step in arithmetic.plan.steps if step.action == "merge"]
    sent = len(pickle.dumps(work)) + len(pickle.dumps(survey(work, names)))
    assert sent < 20_000
    assert Path(files["a"]).stat().st_size > 100 * sent


def test_a_tensor_that_is_computed_as_a_whole_stays_in_one_task(files):
    arithmetic = planned(files, "iso_c")
    cutting = Cutting(arithmetic.plan, [lay_out(arithmetic.plan.specs(), {})], BLOCK)
    every = list(range(len(cutting)))
    found = on_ray.runs(arithmetic, cutting, every, 1)
    assert [index for run in found for index in run] == every
    assert 1 < len(found) <= 3
    linear = planned(files, "linear")
    assert on_ray.runs(linear, cutting, every, 1) == [[index] for index in every]
    assert on_ray.batched(linear, cutting, every, 1) == []
    ties = on_ray.batched(planned(files), cutting, every, 1)
    assert sorted(name for batch in ties for name in batch) == [f"layers.{i}.weight" for i in range(9)] + ["norm"]  # fmt: skip


def test_without_ray_the_error_says_how_to_get_it(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'alloykit\[ray\]'"):
        merged(files, tmp_path / "o.safetensors", executor="ray")


def test_models_in_memory_cannot_travel(tmp_path):
    states = [{"w": torch.zeros(2)}, {"w": torch.ones(2)}]
    with pytest.raises(MissingInput, match="give paths"):
        alloykit.merge(states, output=tmp_path / "o.safetensors", executor="ray")


def test_no_cluster_is_an_error_that_says_how_to_start_one(files, tmp_path, monkeypatch):
    import ray

    def refused(*_, **__):
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(MissingInput, match=r"any running Ray instance\. Start one \(ray start"):
        merged(files, tmp_path / "o.safetensors", executor="ray")
    assert list(tmp_path.iterdir()) == []


def test_what_was_surveyed_elsewhere_is_not_surveyed_again(files, tmp_path):
    arithmetic = planned(files)
    names = [step.name for step in arithmetic.plan.steps if step.action == "merge"]
    states = survey(work_of(arithmetic, files, tmp_path), names)
    cutting = Cutting(arithmetic.plan, [lay_out(arithmetic.plan.specs(), {})], BLOCK)
    assert all(arithmetic.merged(step).method.survey for step in arithmetic.plan.steps[:1])

    class Sink:
        def write(self, block, data):
            pass

    def no(*_, **__):
        raise AssertionError("surveyed")

    for name in names:
        arithmetic.merged(cutting.steps[name]).prepare = no  # type: ignore[method-assign]
    run_blocks(
        arithmetic, cutting, range(len(cutting)), Sink(), threads=2,
        done=lambda *_: None, states=states,
    )  # fmt: skip
