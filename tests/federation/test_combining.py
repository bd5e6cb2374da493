"""What a rule makes of the updates that count, and which of them turn out not to."""

from __future__ import annotations

import math

import pytest
import torch

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import CheckpointError
from alloykit.federation.checks import Checks
from alloykit.federation.combining import boundless, combine, finite, looked_at
from alloykit.federation.contract import (
    Blocks,
    Gram,
    Merge,
    Parts,
    Report,
    Step,
    Sum,
    assembled,
)
from alloykit.federation.structure import structure_of
from alloykit.federation.values import Source, Values

MEAN = Sum(factor=lambda report: 1.0, divisor=len)
STEP = Step(lambda given: (given.combined, {}))


def sample(*numbers, server=0.0, dtype=torch.float32):
    """Clients whose tensors have two elements: this number and its double."""
    clients = [torch.tensor([x, 2 * x], dtype=dtype) for x in numbers]
    sources = [Source(f"c{i}", MemoryCheckpoint({"w": t}, "m")) for i, t in enumerate(clients)]
    own = None if server is None else MemoryCheckpoint({"w": torch.tensor([server, 2 * server])}, "m")  # fmt: skip
    structure = structure_of(own or sources[0].checkpoint)
    return Values(structure, sources, own)


def combined(values, rule, checks=None, *, step=None, asks=(), at_once=True):
    reports = [Report(source.client) for source in values.sources]
    aggregator = assembled("test", {}, Parts(rule, step), frozenset(asks))
    return combine(values, rule, reports, checks or Checks(), aggregator, at_once=at_once)


RULES = {
    "sum": MEAN,
    "gram": Gram(lambda products, reports: [1 / len(reports)] * len(reports)),
    "blocks": Blocks(lambda group: torch.stack(group.tensors).mean(0)),
    "chosen": Blocks(lambda group: torch.stack(group.tensors).mean(0), lambda p, r: range(len(r))),
    "merge": Merge("median", {}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("at_once", [True, False])
def test_rules_of_every_kind(rule, at_once):
    found = combined(sample(1.0, 3.0, 2.0), RULES[rule], at_once=at_once)
    assert found.bad == {}
    torch.testing.assert_close(found.tensor("w"), torch.tensor([2.0, 4.0]))
    assert [report.norm for report in found.reports] == pytest.approx([5**0.5, 45**0.5, 20**0.5])
    known = rule in ("sum", "gram")
    assert found.coefficients == ([1 / 3] * 3 if known else None)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_is_bad_and_nothing_is_combined(rule):
    found = combined(sample(1.0, math.nan, 2.0, -math.inf), RULES[rule])
    assert found.bad == {1: "w holds 2 NaN", 3: "w holds 2 Inf"}
    with pytest.raises(KeyError):
        found.tensor("w")


@pytest.mark.parametrize("rule", RULES)
def test_norms_have_limits(rule):
    found = combined(sample(1.0, 3.0, 1.0, 500.0), RULES[rule], Checks(max_norm=5.0))
    assert found.bad == {
        1: "its change has the norm 6.708, over the limit 5",
        3: "its change has the norm 1118, over the limit 5",
    }
    found = combined(sample(1.0, 3.0, 1.0, 500.0), RULES[rule])
    assert found.bad == {3: "its change has the norm 1118, over 100 times the median of all"}
    assert combined(sample(1.0, 3.0, 1.0, 500.0), RULES[rule], Checks(norm_ratio=None)).bad == {}


@pytest.mark.parametrize("rule", RULES)
def test_a_limit_of_norms_holds_without_looking_at_values(rule):
    found = combined(sample(1.0, 3.0, 1.0), RULES[rule], Checks(values=False, max_norm=5.0))
    assert list(found.bad) == [1]


@pytest.mark.parametrize("rule", ["sum", "gram", "blocks"])
def test_without_a_server_there_are_no_norms(rule):
    values = sample(1.0, 900.0, server=None)
    found = combined(values, RULES[rule], Checks(max_norm=0.1))
    assert found.bad == {}
    assert [report.norm for report in found.reports] == [None, None]
    assert combined(sample(1.0, math.nan, server=None), RULES[rule]).bad == {1: "w holds 2 NaN"}


def test_where_the_first_client_is_the_bad_one():
    found = combined(sample(math.nan, 1.0, 2.0, server=None), MEAN)
    assert found.bad == {0: "w holds 2 NaN"}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_server_is_not_blamed_on_clients(rule):
    with pytest.raises(CheckpointError, match="the server's model holds NaN"):
        combined(sample(1.0, 2.0, 3.0, server=math.nan), RULES[rule])


def test_values_are_looked_at_in_the_servers_precision():
    wide = sample(1.0, 1e300, 2.0)
    one = wide.sources[1]
    far = Source(one.client, MemoryCheckpoint({"w": torch.tensor([1e300, 0.0]).double() * 1e50}, "m"))  # fmt: skip
    values = Values(wide.structure, [wide.sources[0], far, wide.sources[2]], wide.server)
    assert combined(values, MEAN).bad == {1: "w holds 1 Inf"}


def test_means_without_a_step_and_without_looking_are_running_means():
    values, calls = sample(1.0, 3.0), []
    object.__setattr__(values, "mean", lambda name, factors: calls.append(name) or torch.ones(2))
    combined(values, MEAN, Checks(values=False)).tensor("w")
    combined(values, MEAN, Checks(values=False), step=STEP).tensor("w")
    combined(values, MEAN).tensor("w")
    combined(values, Sum(lambda r: 2.0, lambda r: 1.0), Checks(values=False)).tensor("w")
    assert calls == ["w"]


def test_numbers_that_are_no_factors():
    def factor(report):
        return {"a": 1.0, "b": math.inf, "c": math.nan}.get(report.client) or 10.0**400

    reports = [Report(name) for name in "abcd"]
    found = boundless(Sum(factor, lambda reports: 1.0), reports)
    assert list(found) == [1, 2, 3]
    assert set(found.values()) == {"the numbers that it gives are too large or too small to count with"}  # fmt: skip


@pytest.mark.parametrize("asks", [(), ("norm",)])
def test_a_client_without_a_factor_does_not_count(asks):
    rule = Sum(lambda report: math.inf if report.client == "c1" else 1.0, lambda reports: 2.0)
    assert list(combined(sample(1.0, 2.0, 3.0), rule, asks=asks).bad) == [1]


def test_factors_of_all_must_be_numbers():
    assert finite([1, 0.5]) == [1, 0.5]
    with pytest.raises(CheckpointError, match="no client has a weight"):
        combined(sample(1.0, 2.0), Sum(lambda report: 1.0, lambda reports: math.nan))
    with pytest.raises(CheckpointError, match="no client has a weight"):
        combined(sample(1.0, 2.0), Gram(lambda products, reports: [math.nan, 1.0]))


def test_norms_come_with_the_reports():
    values = sample(3.0, 4.0)
    reports, bad = looked_at(values, [Report("c0"), Report("c1")], [9.0, 16.0], Checks())
    assert [report.norm for report in reports] == [3.0, 4.0]
    assert bad == {}
    reports, _ = looked_at(values, [Report("c0")], [-1e-30], Checks())
    assert reports[0].norm == 0.0


def test_a_merge_of_no_tensors():
    ids = MemoryCheckpoint({"i": torch.arange(3)}, "m")
    values = Values(structure_of(ids), [Source("a", ids), Source("b", ids)], ids)
    assert combined(values, Merge("ties", {})).bad == {}
