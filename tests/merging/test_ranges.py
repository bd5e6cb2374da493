from __future__ import annotations

import math

import pytest

from alloykit.errors import InvalidParameter
from alloykit.merging.ranges import require_choice, require_compat, require_number


@pytest.mark.parametrize("value", [0, 1, 0.5, 1.0, True * 1])
def test_numbers_in_range_pass(value):
    require_number("slerp", "t", value, low=0, high=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.5", None, True, [0.5]])
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(InvalidParameter) as caught:
        require_number("slerp", "t", value, low=0, high=1, hint="It is a fraction.")
    start = f"The 't' parameter of slerp must be a number in [0, 1]. Got {value!r}."
    assert str(caught.value) == f"{start} (It is a fraction.)"


@pytest.mark.parametrize(
    ("low", "value", "span"),
    [(-math.inf, math.inf, "a finite number"), (0.0, -1, "a finite number, at least 0")],
)
def test_the_span_is_said(low, value, span):
    with pytest.raises(InvalidParameter, match=f"'p' parameter of m must be {span}. Got {value}"):
        require_number("m", "p", value, low=low)


def test_a_choice_is_suggested():
    require_choice("wsm", "decay", "linear", ("linear", "cosine"))
    with pytest.raises(InvalidParameter) as caught:
        require_choice("wsm", "decay", "cosin", ("linear", "cosine"))
    assert str(caught.value) == (
        "The 'decay' parameter of wsm must be 'linear' or 'cosine'. Got 'cosin'. "
        "Did you mean 'cosine'?"
    )


def test_compat_is_mergekit_or_nothing():
    require_compat("slerp", None)
    require_compat("slerp", "mergekit")
    with pytest.raises(InvalidParameter, match=r"must be 'mergekit' or None\. Got 'paper'"):
        require_compat("slerp", "paper")
