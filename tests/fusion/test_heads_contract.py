"""What every head checks before it is built or trained, and what feeds it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from alloykit.errors import DataError, InvalidParameter, UnknownName
from alloykit.fusion.concat import concat
from alloykit.fusion.contract import candidate_heads, shown_head
from alloykit.fusion.feeding import Answer, Feed, Standard
from alloykit.fusion.gated import gated
from alloykit.fusion.head import HeadData, HeadShape
from alloykit.fusion.log_pool import log_pool
from alloykit.registry import fusion_heads

SHAPE = HeadShape((2, 2), 2, "classification")


def data(rows=6):
    said = torch.randn(2, rows, 2, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    return HeadData(tuple(said), torch.arange(rows) % 2)


def refused(given, shape=SHAPE, head=None):
    with pytest.raises(DataError) as caught:
        (head or concat()).fit(given, shape)
    return str(caught.value)


def test_all_that_does_not_fit_is_listed_at_once():
    members = (torch.zeros(6, 2), torch.full((5, 3), float("nan")))
    text = refused(HeadData(members, torch.tensor([0, 1, 2, 7, 0, 1])))
    assert "The head concat cannot be trained on this data:" in text
    assert "members of widths [2, 2] are needed, and these are [[6, 2], [5, 3]]" in text
    assert "member 2 has 5 rows for 6 targets" in text
    assert "member 2: 15 NaN or infinite numbers" in text
    assert "labels outside 0 to 1: 2, 7" in text


def test_one_class_alone_is_refused():
    text = refused(HeadData(data().members, torch.ones(6, dtype=torch.long)))
    assert "every target is class 1; a head learns from at least two classes" in text


def test_one_row_alone_is_refused():
    one = HeadData(tuple(member[:1] for member in data().members), torch.tensor([1]))
    assert "at least 2 rows are needed, and there are 1" in refused(one)


def test_targets_of_another_shape_are_refused():
    shape = HeadShape((2, 2), 2, "regression")
    text = refused(HeadData(data().members, torch.zeros(6)), shape)
    assert "targets of shape [6, 2] are needed, not [6]" in text


def test_targets_and_contexts_that_are_not_finite_are_refused():
    shape = HeadShape((2, 2), 2, "regression", context=1)
    broken = HeadData(data().members, torch.full((6, 2), torch.inf), torch.full((6, 1), torch.nan))
    text = refused(broken, shape, gated())
    assert "the targets: 12 NaN or infinite numbers" in text
    assert "the context: 6 NaN or infinite numbers" in text


def test_a_context_of_another_width_is_refused():
    given = HeadData(data().members, data().targets, torch.zeros(6, 3))
    shape = HeadShape((2, 2), 2, "classification", context=4)
    assert "a context of shape [6, 4] is needed, and this is [6, 3]" in refused(given, shape)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (HeadShape((2, 2), 2, "regression"), "serves classification and tokens, not regression"),
        (HeadShape((2, 2), 2, "classification", source="features"), "fed outputs, not features"),
        (HeadShape((2, 3), 2, "classification"), r"give 2 outputs each, not \[2, 3\]"),
    ],
)
def test_a_head_says_what_it_does_not_serve(shape, text):
    with pytest.raises(InvalidParameter, match=text):
        log_pool().build(shape)


def test_candidates_fit_the_task_the_source_and_the_context():
    names = {head.name for head in candidate_heads("classification", context=True)}
    assert names == set(fusion_heads.names())
    assert "gated" not in {head.name for head in candidate_heads("classification")}
    assert "log_pool" not in {head.name for head in candidate_heads("regression")}
    without_outputs = {head.name for head in candidate_heads("tokens", source="features")}
    assert without_outputs == {"attention", "attention_mean", "concat", "stacking"}


def test_a_head_is_shown_as_one_would_type_it():
    assert shown_head(concat()) == "concat"
    assert shown_head(concat(hidden=[8], feed="log")) == "concat(hidden=[8], feed='log')"


def test_heads_are_found_by_name():
    with pytest.raises(UnknownName, match="Did you mean 'attention'"):
        fusion_heads.build("atention")
    with pytest.raises(InvalidParameter, match="Did you mean 'hidden'"):
        fusion_heads.build("concat", hiden=[3])


def test_feeds_are_what_their_names_say():
    logs = torch.tensor([[0.81, 0.19], [0.0, 1.0]]).clamp_min(1e-30).log()
    given = HeadData((logs,), torch.tensor([0, 1]))
    shape = HeadShape((2,), 2, "classification")

    def fed(name):
        return Feed(name, shape).learn(given)([logs])[0]

    assert_close(fed("probabilities"), torch.tensor([[0.81, 0.19], [0.0, 1.0]]))
    assert_close(fed("sqrt"), torch.tensor([[0.9, 0.19**0.5], [0.0, 1.0]]))
    clipped = torch.stack([logs[0], torch.tensor([-6.0, 0.0])])
    assert_close(fed("log"), clipped)
    expected = (clipped - clipped.mean(0)) / clipped.std(0, correction=0)
    assert_close(fed("standard"), expected)


def test_values_are_standardised_by_the_targets_so_that_their_mean_stays_one():
    members = (torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0], [3.0]]))
    targets = torch.tensor([[10.0], [30.0]])
    shape = HeadShape((1, 1), 1, "regression")
    fed = Feed("standard", shape).learn(HeadData(members, targets))(members)
    answer = Answer(shape).learn(targets)
    assert_close(fed[0], (members[0] - 20) / 10)
    assert_close(answer(torch.stack(fed).mean(0)), torch.stack(members).mean(0))
    assert_close(answer.inward(targets), torch.tensor([[-1.0], [1.0]]))


def test_constant_columns_are_shifted_only():
    columns = torch.tensor([[7.0, 1.0], [7.0, 3.0]])
    assert_close(Standard(2).learn(columns)(columns), torch.tensor([[0.0, -1.0], [0.0, 1.0]]))
    # A tiny spread around zero is a spread all the same.
    tiny = torch.tensor([[1e-9], [-1e-9]])
    assert_close(Standard(1).learn(tiny)(tiny), torch.tensor([[1.0], [-1.0]]))


@pytest.mark.parametrize("source", ["features", "outputs"])
def test_feeds_of_probabilities_need_probabilities(source):
    task = "classification" if source == "features" else "regression"
    with pytest.raises(InvalidParameter, match="is made of probabilities"):
        concat(feed="sqrt").build(HeadShape((2,), 2, task, source=source))


def test_members_and_head_may_differ_in_precision():
    given = data()
    module = concat(pull=1).fit(given, SHAPE).module
    wide = tuple(member.double() for member in given.members)
    with torch.no_grad():
        assert module(wide).dtype == torch.float32
        said = module.double()(given.members)
    assert said.dtype == torch.float64
