"""Updates of clients -> one model: files, lists, iterators, and the memory they take."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.checks import Checks
from alloykit.federation.holding import copied
from alloykit.federation.update import Aggregated
from client_samples import EVERY, built, honest, model, same_bits, update

SERVER = {n: t for n, t in model().items() if t.dtype not in (torch.bfloat16,)}
SENT = honest(SERVER)


def stored(kind: str, tensors, folder: Path, client: str) -> Path:
    """One model as a file or folder of that kind."""
    path = folder / f"{client}{'' if kind == 'folder' else kind}"
    if kind == ".safetensors":
        save_file(tensors, path)
    elif kind == ".npz":
        np.savez(path, **{n: t.numpy() for n, t in tensors.items()})
    elif kind == "folder":
        path.mkdir()
        names, shards = list(tensors), {}
        for number, part in enumerate((names[:3], names[3:]), start=1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, path / file)
            shards |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": shards}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        torch.save({n: t.clone() for n, t in tensors.items()}, path)
    return path


@pytest.mark.parametrize("kind", [".safetensors", ".pt", ".npz", "folder"])
def test_files_are_their_tensors_bit_for_bit(kind, tmp_path):
    files = [dataclasses.replace(e, model=stored(kind, e.model, tmp_path, e.client)) for e in SENT]
    server = stored(kind, SERVER, tmp_path, "server")
    for name in EVERY:
        wanted = aggregate_updates(SERVER, SENT, built(name))
        assert not wanted.record.left_out
        for origin, sent in ((server, files), (SERVER, files), (server, [*files[:4], *SENT[4:]])):
            found = aggregate_updates(origin, sent, built(name))
            # Files have an order of names of their own.
            assert same_bits({n: found.tensors[n] for n in wanted.tensors}, wanted.tensors), name
            assert not found.record.left_out
            for one, other in zip(found.record.counted, wanted.record.counted, strict=True):
                assert (one.client, one.num_examples) == (other.client, other.num_examples)
                assert one.norm == pytest.approx(other.norm, rel=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_an_iterator_is_a_list_bit_for_bit(name):
    wanted = aggregate_updates(SERVER, SENT, built(name))
    for limit in (None, 0):
        found = aggregate_updates(SERVER, iter(SENT), built(name), memory_limit=limit)
        assert same_bits(found.tensors, wanted.tensors)
        assert found.record == wanted.record


def rounds(name, count, turn) -> list[Aggregated]:
    found, state, server = [], None, SERVER
    for number in range(count):
        sent = honest(server)
        sent = [dataclasses.replace(e, round=number + 1) for e in sent]
        found.append(aggregate_updates(server, turn(sent), built(name), state=state))
        state, server = found[-1].state, found[-1].tensors
    return found


@pytest.mark.parametrize("name", ["fedadam", "fedavgm", "dp_adaptive_clipping", "scaffold"])
def test_rounds_go_on_from_the_state(name):
    one, other = rounds(name, 3, list), rounds(name, 3, lambda sent: sent[::-1])
    for first, second in zip(one, other, strict=True):
        assert same_bits(first.tensors, second.tensors)
    assert [found.record.round for found in one] == [1, 2, 3]
    assert one[-1].state.round == 3
    again = aggregate_updates(one[1].tensors, honest(one[1].tensors), built(name))
    if name in ("fedadam", "fedavgm"):
        assert not same_bits(again.tensors, one[2].tensors)  # without a state it begins anew


def test_checks_of_numbers_follow_the_round():
    first = aggregate_updates(SERVER, SENT, built("fedavg"))
    late = [dataclasses.replace(SENT[0], round=1), *(dataclasses.replace(e, round=2) for e in SENT[1:])]  # fmt: skip
    found = aggregate_updates(first.tensors, late, built("fedavg"), state=first.state)
    (left,) = found.record.left_out
    assert (left.client, left.reason) == ("client 00", "it is of the old round 1; this is round 2")


PEAK = """
import gc, json, sys
from pathlib import Path
import torch
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.checks import Checks
from alloykit.federation.holding import copied
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.update import Update

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

files, counts, methods = json.load(sys.stdin)
server = files[0]
for name, parameters, checks in methods:
    grown = []
    for count in (3, *counts):
        sent = [Update(str(i), files[i % len(files)], num_examples=1) for i in range(count)]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        turned = iter(sent) if checks else sent
        limits = Checks(examples_ratio=None, norm_ratio=None) if checks else None
        aggregate_updates(server, turned, as_aggregator(name, parameters), checks=limits)
        grown.append(peak() - before)
    print(json.dumps([name, *grown[1:]]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_number_of_clients(tmp_path):
    files = []
    for number in range(10):
        generator = torch.Generator().manual_seed(number)
        state = {"embed": torch.randn(900_000, generator=generator), "b": torch.randn(100_000)}
        files.append(str(tmp_path / f"{number}.safetensors"))
        save_file(state, files[-1])
    methods = [["fedavg", {}, 0], ["fedavg", {}, 1],
               ["krum", {"num_malicious": 0}, 0], ["median", {}, 0]]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PEAK], input=json.dumps([files, [10, 60], methods]),
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, few, many = json.loads(line)
        # Of 10 or 60 clients of 4 MB hardly more than some blocks.
        assert max(few, many) < 8 * (4 << 20), (name, few, many)


def test_updates_in_a_list_are_not_copied(monkeypatch):
    big = {"w": torch.zeros(1000)}
    sent = [update(f"c{i}", big) for i in range(3)]
    calls = []

    def seen(*given, **options):
        calls.append(given)
        return copied(*given, **options)

    monkeypatch.setattr("alloykit.federation.round.copied", seen)
    aggregate_updates(big, sent, built("fedavg"))
    assert calls == []
    aggregate_updates(big, iter(sent), built("fedavg"))
    assert len(calls) == 3


def test_no_updates_at_all_keep_the_servers_model():
    found = aggregate_updates(SERVER, [], built("fedavg"), checks=Checks(min_clients=2))
    assert found.record.kept_server == "0 updates of at least 2 can be used"
    assert same_bits(found.tensors, SERVER)
