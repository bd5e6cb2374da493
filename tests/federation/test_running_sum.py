"""A sum of deltas that takes one client at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.federation.running_sum import RunningSum
from alloykit.federation.structure import structure_of
from alloykit.federation.values import Source, Values
from client_samples import same_bits
from strategies import state_dicts


def opened(state):
    return MemoryCheckpoint(state, "m")


def sources(states, delta=False):
    return [Source(f"c{i}", opened(state), delta) for i, state in enumerate(states)]


def summed(server, clients, factors, divisor=1.0):
    structure = structure_of(opened(server))
    running = RunningSum(structure, opened(server))
    for source, factor in zip(clients, factors, strict=True):
        running.add(source, factor)
    return {name: running.combination(name, divisor) for name in structure.averaged}


def test_the_formula_by_hand():
    server, one, other = ({"w": torch.tensor([x])} for x in (1.0, 3.0, 9.0))
    found = summed(server, sources([one, other]), [2.0, 0.5], divisor=2.0)
    # 1 + (2 · (3 - 1) + 0.5 · (9 - 1)) / 2
    assert found["w"].tolist() == [5.0]


def test_changes_are_added_as_they_are():
    server, one = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    assert summed(server, sources([one], delta=True), [2.0])["w"].tolist() == [7.0]


@given(states=state_dicts(4), factors=st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_it_is_what_blocks_give_to_rounding(states, factors):
    server, *clients = states
    structure = structure_of(opened(server))
    values = Values(structure, sources(clients), opened(server))
    found = summed(server, sources(clients), factors)
    for name in structure.averaged:
        wanted = values.combination(name, factors)
        exact = wanted.dtype in (torch.float64, torch.complex128)
        largest = max(float(state[name].abs().max()) for state in states) if wanted.numel() else 0.0
        bound = (1e-14 if exact else 2e-6) * largest
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=bound)


@given(states=state_dicts(1), factors=st.lists(st.floats(0, 5), min_size=1, max_size=5))
def test_what_nobody_changed_stays_to_the_bit(states, factors):
    (server,) = states
    structure = structure_of(opened(server))
    found = summed(server, sources([server] * len(factors)), factors, divisor=3.0)
    for name in structure.averaged:
        wide = server[name].to(found[name].dtype)
        assert same_bits({"": found[name]}, {"": wide})


def test_the_order_of_arrival_does_not_show_in_float32():
    generator = torch.Generator().manual_seed(4)
    server = {"w": torch.randn(5000, generator=generator)}
    clients = [{"w": server["w"] + torch.randn(5000, generator=generator)} for _ in range(9)]
    factors = torch.rand(9, generator=generator).tolist()
    one = summed(server, sources(clients), factors)["w"]
    other = summed(server, sources(clients)[::-1], factors[::-1])["w"]
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_changes_neither_server_nor_clients(dtype):
    server, client = {"w": torch.ones(3, dtype=dtype)}, {"w": torch.full((3,), 3.0, dtype=dtype)}
    summed(server, sources([client]), [1.0], divisor=2.0)
    assert server["w"].tolist() == [1.0] * 3
    assert client["w"].tolist() == [3.0] * 3
