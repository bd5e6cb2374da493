"""Aggregators by name."""

from __future__ import annotations

import pytest
import torch

import alloykit
from alloykit.errors import InvalidParameter, MissingInput, UnknownName
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import Aggregator, Blocks, Merge, ServerState
from alloykit.federation.update import Update
from alloykit.registry import aggregators, merge_methods
from client_samples import PARAMETERS, same_bits


@pytest.mark.parametrize("name", aggregators.names())
def test_every_aggregator_by_name(name):
    made = as_aggregator(name, PARAMETERS.get(name))
    assert isinstance(made, Aggregator)
    assert made.name == name
    assert as_aggregator(made) is made
    rebuilt = as_aggregator(made.name, made.parameters)
    assert rebuilt.parameters == made.parameters


def test_what_it_needs_says_what_could_carry_it():
    needs = {name: as_aggregator(name, PARAMETERS.get(name)).needs for name in aggregators.names()}
    assert needs["fedavg"] == needs["fedadam"] == needs["dp_fixed_clipping"] == "sum"
    assert needs["krum"] == needs["rfa"] == needs["centred_clipping"] == "gram"
    assert needs["bulyan"] == as_aggregator("median").needs == "blocks"
    assert as_aggregator("ties").needs == "models"


def test_parameters_belong_to_a_name():
    with pytest.raises(InvalidParameter, match=r"fedavg was given ready made, with \{\}"):
        as_aggregator(as_aggregator("fedavg"), {"momentum": 0.5})
    with pytest.raises(InvalidParameter, match="trim"):
        as_aggregator("trimmed_mean", {"trim": 0.7})
    with pytest.raises(InvalidParameter):
        as_aggregator("fedavg", {"momentum": 0.5})


def test_unknown_names_get_a_hint():
    with pytest.raises(UnknownName, match=r"no aggregator 'fedavgg'\. Did you mean 'fedavg'"):
        as_aggregator("fedavgg")
    with pytest.raises(UnknownName, match="Did you mean 'trimmed_mean'"):
        as_aggregator("trimed_mean")


def clients(count=4):
    generator = torch.Generator().manual_seed(0)
    return [
        {"w": torch.randn(40, 5, generator=generator), "h": torch.randn(6, generator=generator).half(),
         "n": torch.tensor(3)}
        for _ in range(count)
    ]  # fmt: skip


PASSES = [
    entry.name for entry in merge_methods.entries()
    if not entry.contract["needs"] - {"base"} and not entry.contract.get("ordered")
]  # fmt: skip


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "geometric_median", "ties", "breadcrumbs"])  # fmt: skip
def test_a_merge_method_is_that_merge(name):
    server, *sent = clients()
    named = {f"c{i}": state for i, state in enumerate(sent)}
    updates = [Update(client, state, num_examples=9) for client, state in named.items()]
    found = aggregate_updates(server, updates, as_aggregator(name)).tensors
    needs_base = "base" in merge_methods.entry(name).contract["needs"]
    base = {"base": server} if needs_base else {}
    wanted = alloykit.merge(named, name, **base)
    for key in ("w", "n"):
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-6, atol=1e-7)
    # Half precision is rounded once more where the engine merges.
    torch.testing.assert_close(found["h"], wanted["h"], rtol=1e-3, atol=1e-3)
    assert found["h"].dtype == torch.float16


def test_random_merges_go_by_the_clients_names():
    server, *sent = clients()
    updates = [Update(f"c{i}", state) for i, state in enumerate(sent)]
    method = as_aggregator("dare_linear", {"density": 0.5})
    one = aggregate_updates(server, updates, method).tensors
    other = aggregate_updates(server, updates[::-1], method).tensors
    assert same_bits(one, other)


def test_what_needs_a_base_needs_a_server():
    updates = [Update(f"c{i}", state) for i, state in enumerate(clients())]
    with pytest.raises(MissingInput, match="ties starts from the server's model"):
        aggregate_updates(None, updates, as_aggregator("ties"))


def test_merges_leave_kept_tensors_out():
    server, *sent = clients()
    without = [
        Update(f"c{i}", {n: t for n, t in s.items() if n != "h"}) for i, s in enumerate(sent)
    ]
    for name in ("ties", "median"):
        found = aggregate_updates(server, without, as_aggregator(name), keep=["h"])
        assert torch.equal(found.tensors["h"], server["h"])
        assert not torch.equal(found.tensors["w"], server["w"])


def test_merges_of_elements_are_walked_in_blocks():
    assert isinstance(as_aggregator("median").rule(ServerState()), Blocks)
    assert as_aggregator("ties", {"density": 0.3}).rule(ServerState()) == Merge(
        "ties", as_aggregator("ties", {"density": 0.3}).parameters
    )
