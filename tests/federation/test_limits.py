"""Refusals of parameters, and of rounds with too few clients."""

from __future__ import annotations

import pytest

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.federation.limits import (
    fraction,
    known,
    not_negative,
    one_of,
    positive,
    quantile,
    refuse,
    require_clients,
    whole,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (positive, (1, 0.1), (0, -1, NAN, INF, True, "1", None)),
        (lambda n, v: positive(n, v, infinite=True), (1, INF), (0, NAN, -INF)),
        (not_negative, (0, 2.5), (-0.1, NAN, INF, False, None)),
        (fraction, (0, 0.99), (1, -0.1, NAN)),
        (quantile, (0, 1), (1.1, -0.1, NAN, None)),
        (whole, (0, 7), (-1, 1.0, True, "2")),
        (lambda n, v: one_of(n, v, (None, "flower")), (None, "flower"), ("x",)),
    ],
)
def test_ranges(check, good, bad):
    assert [check("x", value) for value in good] == [None] * len(good)
    for value in bad:
        assert check("x", value).startswith("'x' must be ")
        assert check("x", value).endswith(f"Got {value!r}.")


def test_one_text_or_all():
    refuse("m", [None, None])
    with pytest.raises(
        InvalidParameter,
        match=r"^The 'a' parameter of m must be a whole number, at least 1\. Got 0\.$",
    ):
        refuse("m", [whole("a", 0, 1), None])
    with pytest.raises(
        InvalidParameter, match=r"^These parameters of m cannot be used:\n  'a' must.*\n  'b' must"
    ):
        refuse("m", [whole("a", 0, 1), whole("b", -1)])


def test_too_few_clients_with_all_numbers():
    require_clients("krum", 2, 2, 7)
    with pytest.raises(InvalidParameter) as caught:
        require_clients("krum", 2, 2, 6)
    assert str(caught.value) == (
        "krum with num_malicious=2 needs at least 7 clients (2 · 2 + 3), and 6 count in this round. "
        "Take at most num_malicious=1, or wait for more clients: min_clients=7."
    )
    with pytest.raises(InvalidParameter) as caught:
        require_clients("bulyan", 0, 4, 2)
    assert str(caught.value).endswith(
        "2 count in this round. Wait for more clients: min_clients=3."
    )


def test_what_must_be_known():
    assert known(0.0, "loss", "a", "qfedavg") == 0.0
    with pytest.raises(
        MissingInput, match="qfedavg needs the loss of every client, and 'a' has none"
    ):
        known(None, "loss", "a", "qfedavg")
