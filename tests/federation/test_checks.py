"""Limits on what clients may send and claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alloykit.errors import InvalidParameter
from alloykit.federation.checks import Checks, claims, exceeds
from alloykit.federation.update import Update
from client_samples import built

FINE = {"num_examples": 3, "steps": 2, "loss": 0.0, "control": {}}


def said(aggregator: str = "fedavg", checks: Checks | None = None, current: int = 5, **numbers):
    update = Update("a", None, **{**FINE, **numbers})
    return claims(update, built(aggregator), checks or Checks(), current)


def test_limits_outside_their_ranges_are_all_listed():
    with pytest.raises(InvalidParameter) as caught:
        Checks(on_bad="ignore", dtypes="any", max_norm=0, norm_ratio=math.nan, examples_ratio=-1,
               max_examples="9", min_clients=0)  # fmt: skip
    lines = str(caught.value).splitlines()
    assert lines[0] == "Updates cannot be checked by these limits:"
    assert [line.split()[0] for line in lines[1:]] == [
        "'on_bad'", "'dtypes'", "'max_examples'", "'examples_ratio'", "'max_norm'", "'norm_ratio'",
        "'min_clients'",
    ]  # fmt: skip


def test_they_go_to_json_and_back():
    checks = Checks(on_bad="error", min_clients=3, max_norm=2.0, norm_ratio=None, dtypes="kind")
    assert Checks.of(checks.to_json()) == checks


def test_a_misspelt_limit_is_named():
    with pytest.raises(InvalidParameter, match=r"'max_nrom'\. Did you mean 'max_norm'"):
        Checks.of({"max_nrom": 3.0})


@pytest.mark.parametrize("count", [1, 0.5, np.float32(3), np.int64(7), 1e99, 1e-99])
def test_numbers_of_any_sort_are_numbers_of_examples(count):
    assert said(num_examples=count) == ""


def test_no_number_is_no_claim():
    assert said(num_examples=None) == ""


def test_the_largest_claim_counts_and_more_does_not():
    checks = Checks(max_examples=100)
    assert said(checks=checks, num_examples=100) == ""
    assert said(checks=checks, num_examples=101) == (
        "it says that it has 101 examples, over the limit 100"
    )


def test_what_an_aggregator_asks_for_must_be_there():
    assert said("fednova", steps=None) == (
        "fednova asks for its number of local steps, and it gives none"
    )
    assert said("fednova", steps=0) == "it took no local step"
    assert said("qfedavg", loss=None).startswith("qfedavg asks for its loss of the server's model")
    assert said("scaffold", control=None).startswith("scaffold asks for the change of its control")
    assert said("fedavg", steps=None, loss=None, control=None) == ""
    assert said("fedavg", steps=0) == ""


def test_old_rounds_count_where_lateness_does():
    assert said(round=5) == ""
    assert said(round=None) == ""
    assert said(round=4) == "it is of the old round 4; this is round 5"
    assert "holds a whole model" in said("fedbuff", round=4)
    assert said("fedbuff", round=4, delta=True) == ""
    assert said(round=6) == "it is of round 6, and this is round 5"
    assert said(round=True) == "it is of round True, and this is round 5"
    assert "thousands of digits" in said(round=10**5000)


def test_long_nonsense_is_cut():
    assert said(num_examples="x" * 10_000) == f"it says that it has '{'x' * 39}… examples"


@pytest.mark.parametrize(
    ("values", "ratio", "found"),
    [
        ([1.0, 2.0, 3.0, 301.0], 100, [False, False, False, True]),
        ([1.0, 2.0, 3.0, 250.0], 100, [False, False, False, False]),
        ([1.0, 2.0, 3.0, 301.0], None, [False] * 4),
        ([None, 1.0, 1.0, 200.0], 100, [False, False, False, True]),
        ([0.0, 0.0, 0.0, 5.0], 100, [False] * 4),
        ([], 100, []),
    ],
)
def test_absurd_is_a_multiple_of_the_median(values, ratio, found):
    assert exceeds(values, ratio) == found


@pytest.mark.parametrize(
    ("limits", "aggregator", "measures", "compares"),
    [
        ({}, "fedavg", True, True),
        ({"values": False}, "fedavg", False, True),
        ({"values": False, "examples_ratio": None}, "fedavg", False, False),
        ({"values": False, "examples_ratio": None, "max_norm": 1.0}, "fedavg", True, True),
        ({"examples_ratio": None}, "fedavg", True, True),
        ({"examples_ratio": None, "norm_ratio": None}, "fedavg", True, False),
        ({"norm_ratio": None}, "dp_fixed_clipping", True, False),
        ({"values": False}, "dp_fixed_clipping", True, True),
        ({"values": False}, "fedbuff", False, False),
    ],
)
def test_what_is_measured_and_what_waits_for_the_others(limits, aggregator, measures, compares):
    checks = Checks(**limits)
    assert checks.measures(built(aggregator)) == measures
    assert checks.compares(built(aggregator)) == compares
