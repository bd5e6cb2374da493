"""Reliance: what a head loses without a member, by hand; and its picture."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alloykit.errors import DataError, InvalidParameter, MissingInput
from alloykit.fusion.head import HeadData, HeadShape
from alloykit.fusion.reliance import Reliance, reliance
from alloykit.fusion.reliance_picture import picture

LOGS = (
    torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]).log(),
    torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.7, 0.3]]).log(),
)
TARGETS = torch.tensor([0, 1, 0])
SHAPE = HeadShape((2, 2), 2, "classification")


class Pool(nn.Module):
    """The plain log pool, with an attention of its own."""

    def forward(self, members, context):
        return (sum(members) / len(members)).log_softmax(-1)

    def attention(self, members, context):
        weights = torch.stack([rows[:, 0].exp() for rows in members], 1)
        return weights / weights.sum(1, keepdim=True)


class First(nn.Module):
    def forward(self, members, context):
        return members[0]


def test_losses_are_those_computed_by_hand():
    found = reliance(Pool(), HeadData(LOGS, TARGETS), SHAPE, ["a", "b"])
    for place in range(2):
        columns = [rows.double().exp() for rows in LOGS]
        full = torch.sqrt(columns[0] * columns[1])
        columns[place] = columns[place].mean(0).expand(3, 2)
        deaf = torch.sqrt(columns[0] * columns[1])
        losses = [-(p / p.sum(1, keepdim=True))[range(3), TARGETS].log() for p in (full, deaf)]
        rise = losses[1] - losses[0]
        assert found.overall[place] == pytest.approx(float(rise.mean()), abs=1e-6)
        assert found.loss[0][place] == pytest.approx(float((rise[0] + rise[2]) / 2), abs=1e-6)
        assert found.loss[1][place] == pytest.approx(float(rise[1]), abs=1e-6)
    assert found.counts == (2, 1)


def test_attention_is_averaged_over_all_rows_and_over_classes():
    found = reliance(Pool(), HeadData(LOGS, TARGETS), SHAPE, ["a", "b"])
    rows = Pool().attention(LOGS, None)
    assert_close(torch.tensor(found.attention), rows.mean(0))
    assert_close(torch.tensor(found.class_attention)[0], rows[[0, 2]].mean(0))
    assert sum(found.attention) == pytest.approx(1)
    assert reliance(First(), HeadData(LOGS, TARGETS), SHAPE, "ab").attention is None


def test_an_unheard_member_costs_nothing_and_accuracy_counts_mistakes():
    found = reliance(First(), HeadData(LOGS, TARGETS), SHAPE, "ab", measure="accuracy")
    # Without the first, every row is the mean (0.57, 0.43): class 0, which is wrong once.
    assert found.loss == ((0.0, 0.0), (1.0, 0.0))
    assert found.overall == (pytest.approx(1 / 3), 0.0)


def test_regression_is_told_per_output():
    values = (torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.zeros(2, 2))
    targets = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    shape = HeadShape((2, 2), 2, "regression")
    found = reliance(First(), HeadData(values, targets), shape, "ab", classes=["x", "y"])
    assert found.loss == ((1.0, 0.0), (0.0, 0.0))
    assert found.measure == "squared_error"


def test_features_are_replaced_by_their_mean_and_absent_classes_are_not_a_number():
    shape = HeadShape((2, 2), 3, "classification", source="features")

    class Wide(nn.Module):
        def forward(self, members, context):
            return torch.cat([members[0], members[0][:, :1]], 1).log_softmax(-1)

    found = reliance(Wide(), HeadData(LOGS, TARGETS), shape, "ab")
    assert math.isnan(found.loss[2][0])
    assert found.to_json()["loss"][2] == [None, None]


def test_json_travels():
    found = reliance(Pool(), HeadData(LOGS, TARGETS), SHAPE, ["a", "b"], classes=["x", "y"])
    assert Reliance.of(json.loads(json.dumps(found.to_json()))) == found


def test_wrong_measures_and_names_are_refused():
    data = HeadData(LOGS, TARGETS)
    with pytest.raises(InvalidParameter, match="must be log_loss or accuracy"):
        reliance(Pool(), data, SHAPE, "ab", measure="squared_error")
    with pytest.raises(DataError, match="1 names and 3 classes were given for 2 members"):
        reliance(Pool(), data, SHAPE, "a", classes=["x", "y", "z"])


@pytest.mark.parametrize("what", ["loss", "attention"])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_written(what, suffix, tmp_path):
    found = reliance(Pool(), HeadData(LOGS, TARGETS), SHAPE, ["north", "south"])
    path = picture(found, tmp_path / f"reliance.{suffix}", what=what)
    start = path.read_bytes()[:100]
    assert start.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_a_picture_of_attention_needs_attention(tmp_path):
    found = reliance(First(), HeadData(LOGS, TARGETS), SHAPE, "ab")
    with pytest.raises(MissingInput, match="no attention per class"):
        picture(found, tmp_path / "a.png", what="attention")


def test_of_a_large_vocabulary_the_classes_with_the_most_rows_are_told_and_the_worst_drawn(
    tmp_path,
):
    generator = torch.Generator().manual_seed(0)
    logs = torch.randn(40, 1500, generator=generator).log_softmax(-1)
    targets = torch.arange(40) % 20 + 1480
    shape = HeadShape((1500, 1500), 1500, "tokens")
    found = reliance(First(), HeadData((logs, logs.flip(0)), targets), shape, "ab")
    assert len(found.classes) == len(found.loss) == 1000
    assert found.classes[-20:] == tuple(str(label) for label in range(1480, 1500))
    assert found.counts[-20:] == (2,) * 20
    assert sum(found.counts) == 40
    path = picture(found, tmp_path / "large.svg")
    assert "60 of 1000 classes" in path.read_text().replace("<!-- ", "")
