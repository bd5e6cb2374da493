from __future__ import annotations

import pickle

import pytest

from alloykit import errors
from alloykit.errors import AlloyError, did_you_mean, listing

EVERY = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, AlloyError) and value is not AlloyError
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: error.__name__)
def test_every_error_is_in_the_tree_with_its_builtin_and_exit_code(error):
    tree = errors.__doc__ or ""
    (line,) = [line for line in tree.splitlines() if f" {error.__name__}(" in line]
    builtin = line.partition("(")[2].partition(")")[0]
    assert issubclass(error, {"LookupError": LookupError, "ValueError": ValueError,
                              "PermissionError": PermissionError, "ImportError": ImportError,
                              "FileExistsError": FileExistsError}[builtin])  # fmt: skip
    codes = [int(word) for word in line.split() if word.isdigit()]
    assert codes == [error.exit_code]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: error.__name__)
def test_errors_say_their_text_and_survive_a_process_boundary(error):
    raised = error("what is wrong, and how to go on")
    assert str(raised) == "what is wrong, and how to go on"
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is error
    assert str(again) == str(raised)


def test_unforeseen_errors_end_with_one():
    assert AlloyError.exit_code == 1


@pytest.mark.parametrize(
    ("count", "last"),
    [(0, ""), (1, "  line 0"), (10, "  line 9"), (11, "  and 1 more"), (41, "  and 31 more")],
)
def test_listing_shows_ten_lines_then_how_many_more(count, last):
    shown = listing(f"line {number}" for number in range(count)).splitlines()
    assert len(shown) == min(count, 11)
    assert (shown[-1] if shown else "") == last


def test_listing_takes_another_limit():
    assert listing(["a", "b", "c"], limit=1) == "  a\n  and 2 more"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("tise", " Did you mean 'ties'?"),
        ("linea", " Did you mean 'linear'?"),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_misspelt_names_get_a_hint(given, hint):
    assert did_you_mean(given, ["linear", "ties"]) == hint
