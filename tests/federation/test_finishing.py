"""The end of a round: the server's step, and every tensor in the server's dtype."""

from __future__ import annotations

import math

import pytest
import torch

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import CheckpointError
from alloykit.federation.contract import Given, Parts, ServerState, Step, Sum, assembled
from alloykit.federation.finishing import Ending
from alloykit.federation.structure import structure_of

RULE = Sum(factor=lambda report: 1.0, divisor=lambda reports: 1.0)


def ending(server, combined, step=None, *, keep=(), agreed=None, state=None, looked_at=True):
    opened = MemoryCheckpoint(server, "m")
    return Ending(
        structure=structure_of(opened, keep), server=opened, combined=combined.__getitem__,
        agreed=agreed or {}, aggregator=assembled("test", {}, Parts(RULE, step), frozenset()),
        state=state or ServerState(), clients=3, looked_at=looked_at,
    )  # fmt: skip


def doubled(given: Given):
    return given.combined * 2, {"seen": given.combined.clone()}


def test_results_are_in_the_servers_dtypes_and_order():
    server = {"b": torch.ones(2).half(), "a": torch.ones(1).double(), "i": torch.tensor(3), "k": torch.ones(1)}  # fmt: skip
    combined = {"b": torch.full((2,), 1.0001), "a": torch.full((1,), 2.0, dtype=torch.float64)}
    found = dict(ending(server, combined, keep=["k"], agreed={"i": torch.tensor(5)}).tensors({}))
    assert list(found) == ["b", "a", "i", "k"]
    assert [t.dtype for t in found.values()] == [t.dtype for t in server.values()]
    assert found["b"].tolist() == [1.0, 1.0]
    assert found["i"] == 5
    found["k"].add_(1)
    assert server["k"].tolist() == [1.0]


def test_of_tied_names_the_first_comes_once():
    tied = torch.ones(2)
    found = list(ending({"a": tied, "b": tied}, {"a": torch.zeros(2)}).tensors({}))
    assert [name for name, _ in found] == ["a"]


def test_a_step_sees_trained_tensors_and_keeps_slots():
    server = {"w": torch.ones(1).bfloat16(), "bn.running_mean": torch.ones(1)}
    combined = {"w": torch.tensor([3.0]), "bn.running_mean": torch.tensor([4.0])}
    slots = {"seen": {"w": torch.tensor([7.0]), "old": torch.tensor([1.0])}}
    givens = []

    def change(given):
        givens.append(given)
        return doubled(given)

    state = ServerState(round=4, numbers={"clip": 0.5})
    made = dict(ending(server, combined, Step(change), state=state).tensors(slots))
    assert made["w"].tolist() == [6.0]
    assert made["bn.running_mean"].tolist() == [4.0]
    (given,) = givens
    assert (given.name, given.round, given.clients, given.numbers) == ("w", 5, 3, {"clip": 0.5})
    assert given.server.dtype == torch.float32
    assert given.slots["seen"].tolist() == [7.0]
    assert slots["seen"]["w"].tolist() == [3.0]
    assert slots["seen"]["old"].tolist() == [1.0]


def test_a_step_may_change_statistics_too():
    step = Step(doubled, buffers=lambda given: given.combined + 1)
    found = dict(ending({"running_var": torch.ones(1)}, {"running_var": torch.ones(1)}, step).tensors({}))  # fmt: skip
    assert found["running_var"].tolist() == [2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [1e38 * 10, math.nan, 7e4])
def test_what_the_dtype_cannot_hold_is_an_error(dtype, value):
    made = ending({"w": torch.ones(2).to(dtype)}, {"w": torch.tensor([1.0, value])})
    if dtype == torch.float32 and value == 7e4:
        assert dict(made.tensors({}))["w"].tolist() == [1.0, 7e4]
        return
    what = "NaN" if math.isnan(value) else "Inf"
    with pytest.raises(CheckpointError, match=f"The new w is outside the range of {dtype}: 1 {what}"):  # fmt: skip
        dict(made.tensors({}))


def test_who_does_not_look_gets_what_there_is():
    found = dict(ending({"w": torch.ones(1)}, {"w": torch.tensor([math.inf])}, looked_at=False).tensors({}))  # fmt: skip
    assert found["w"].isinf().all()
