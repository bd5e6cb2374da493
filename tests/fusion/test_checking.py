"""The check against the plain mean: on unseen rows, paired by example, honest in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alloykit.data.examples import as_examples
from alloykit.errors import DataError
from alloykit.evaluation.uncertainty import improvement
from alloykit.fusion.checking import (
    Check,
    check_against_mean,
    cross_fitted,
    plain_mean,
    require_enough,
)
from alloykit.fusion.collecting import gather
from alloykit.fusion.head import FittedHead, FusionHead
from alloykit.types import Interval

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X.argmax(1)


class Memory(nn.Module):
    """Right on the rows that it was trained on, and silent elsewhere."""

    def __init__(self, data):
        super().__init__()
        self.known = {
            tuple(row.tolist()): int(y)
            for row, y in zip(data.members[0], data.targets, strict=True)
        }

    def forward(self, members, context):
        rows = torch.full((len(members[0]), 3), 1 / 3)
        for place, row in enumerate(members[0]):
            if tuple(row.tolist()) in self.known:
                rows[place] = nn.functional.one_hot(
                    torch.tensor(self.known[tuple(row.tolist())]), 3
                )
        return rows.log().clamp_min(-50)

    def attention(self, members, context):
        return torch.full((len(members[0]), len(members)), 1 / len(members))


HEAD = FusionHead(
    "memory",
    {},
    lambda shape: nn.Identity(),
    lambda data, shape: FittedHead(Memory(data)),
    frozenset({"classification", "tokens"}),
)


def rows(task="classification", x=X, y=Y, members=2):
    nets = {str(i): nn.Identity() for i in range(members)}
    return gather(nets, as_examples((x, y), "validation"), task=task)


def test_every_row_is_scored_by_a_head_that_did_not_see_it():
    gathered = rows()
    judged = cross_fitted(HEAD, gathered)
    found = judged(gathered.data.members, None)
    assert_close(found, torch.full((40, 3), 1 / 3).log())
    assert judged.attention(gathered.data.members, None).shape == (40, 2)


def test_examples_are_not_cut_in_two_and_are_what_is_resampled():
    x, y = X.reshape(10, 4, 3).repeat_interleave(2, 0), Y.reshape(10, 4).repeat_interleave(2, 0)
    y[0, 1] = -100
    gathered = rows("tokens", x, y)
    assert gathered.examples == 20
    for part in cross_fitted(HEAD, gathered).rows:
        whole = torch.isin(gathered.owner, gathered.owner[part])
        assert torch.equal(whole.nonzero().flatten(), part)
    better = plain_mean(gathered) * 2
    found = check_against_mean(better.log_softmax(-1), gathered)
    assert found.examples == 20
    log = x.log_softmax(-1).double()
    expected = improvement("log_loss", (2 * log).log_softmax(-1), log, y)
    assert found.improvement["log_loss"].low == pytest.approx(expected.low)


def test_the_plain_mean_is_of_probabilities_and_of_values():
    gathered = gather(
        {"a": nn.Identity(), "b": nn.Tanh()},
        as_examples((X, Y), "validation"),
    )
    expected = ((X.softmax(-1) + X.tanh().softmax(-1)) / 2).log()
    assert_close(plain_mean(gathered).float(), expected)
    values = gather(
        {"a": nn.Identity(), "b": nn.Tanh()}, as_examples((X, X), "validation"), task="regression"
    )
    assert_close(plain_mean(values).float(), (X + X.tanh()) / 2)
    check = check_against_mean(X, values)
    assert set(check.scores) == {"rmse"}
    assert check.beaten == ("rmse",)


def interval(low):
    return Interval(low + 1.0, low, low + 2.0)


@pytest.mark.parametrize(
    ("lows", "text"),
    [
        ((0.1, 0.1), "beats the plain mean on log_loss and accuracy"),
        (
            (0.1, 0.0),
            "beats the plain mean on log_loss, and does not beat the plain mean on accuracy",
        ),
        ((0.0, -0.1), "does not beat the plain mean"),
    ],
)
def test_the_verdict_says_no_more_than_the_intervals(lows, text):
    gains = dict(zip(("log_loss", "accuracy"), map(interval, lows), strict=True))
    assert Check({}, {"log_loss": 1.0}, gains, 10, "held out").verdict == text


def test_members_without_a_mean_are_not_compared():
    members = {"a": nn.Identity(), "b": nn.Linear(3, 2)}
    gathered = gather(members, as_examples((X, Y), "validation"))
    check = check_against_mean(X.log_softmax(-1), gathered)
    assert check.mean == {}
    assert check.verdict.startswith("has no plain mean")


def test_what_is_too_small_says_how_much_is_needed():
    few = gather({"a": nn.Linear(3, 15)}, as_examples((X[:25], Y[:25]), "validation"))
    with pytest.raises(DataError, match="25 examples, and 30 are the least"):
        require_enough(few)
    assert require_enough(rows()) == ()
