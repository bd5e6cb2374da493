from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from plain_torch import assert_same_in_plain_torch
from torch import nn
from torch.testing import assert_close

from alloykit.checkpoints.exporting import load_exported, save_exported
from alloykit.ensembling.average import average
from alloykit.ensembling.module import Ensemble
from alloykit.ensembling.per_class import per_class
from alloykit.ensembling.rule import candidate_rules, shown
from alloykit.ensembling.weighted import weighted
from alloykit.errors import CheckpointError, DataError, OutputExists, UnsafeCheckpoint

SOURCE = """
import torch
from torch import nn

class Vanishing(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )

    def forward(self, images):
        return self.layers(images)
"""

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def flat(seed, inputs=4, classes=3):
    torch.manual_seed(seed)
    return nn.Linear(inputs, classes)


def test_an_exported_ensemble_runs_where_neither_alloykit_nor_the_members_source_exists(
    tmp_path, monkeypatch
):
    (tmp_path / "vanishing.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    from vanishing import Vanishing

    members = {"conv": Vanishing(0), "flat": nn.Sequential(nn.Flatten(), flat(1, 64))}
    rule = per_class()
    stack = torch.stack([m.eval()(IMAGES).detach().log_softmax(-1) for m in members.values()])
    ensemble = Ensemble(members, rule, rule.fit(stack, TARGETS))
    save_exported(ensemble, tmp_path / "both.pt2", IMAGES)
    expected = ensemble(IMAGES)
    assert_close(load_exported(tmp_path / "both.pt2")(IMAGES), expected, rtol=0, atol=1e-6)

    (tmp_path / "vanishing.py").unlink()
    assert_same_in_plain_torch(tmp_path / "both.pt2", IMAGES, expected, "vanishing")


ONE_OF_EACH = {rule.name: rule for rule in candidate_rules("classification")}.values()


@pytest.mark.parametrize("rule", [*ONE_OF_EACH, average()], ids=shown)
def test_every_rule_can_be_exported(rule, tmp_path):
    members = [flat(0), flat(1), flat(2)]
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    stack = torch.stack([member(inputs).detach().log_softmax(-1) for member in members])
    state = rule.fit(stack, TARGETS) if rule.fit else {}
    ensemble = Ensemble(members, rule, state)
    save_exported(ensemble, tmp_path / "all.pt2", inputs[:1])
    loaded = load_exported(tmp_path / "all.pt2")
    assert_close(loaded(inputs), ensemble(inputs), rtol=0, atol=1e-6)


def test_members_of_weight_zero_the_examples_and_the_source_are_not_in_the_file(tmp_path):
    members = {"kept": flat(0, 300), "dropped": flat(1, 300), "also": flat(2, 300)}
    inputs = torch.full((4, 300), 0.123456789)
    whole = Ensemble(members, average())
    part = Ensemble(members, weighted(weights=[1, 0, 0]))
    save_exported(whole, tmp_path / "whole.pt2", inputs)
    save_exported(part, tmp_path / "part.pt2", inputs)
    saved = 2 * 300 * 3 * 4
    sizes = [(tmp_path / name).stat().st_size for name in ("whole.pt2", "part.pt2")]
    assert sizes[0] - sizes[1] > saved
    with zipfile.ZipFile(tmp_path / "part.pt2") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    joined = b"".join(content.values())
    assert inputs[0, :4].numpy().tobytes() not in joined
    assert __file__.encode() not in joined
    assert b"ensembling/module.py" not in joined
    description = next(value for name, value in content.items() if name.endswith("alloykit.json"))
    assert json.loads(description)["members"] == ["kept"]
    assert json.loads(description)["weights"] == [1.0]
    assert_close(load_exported(tmp_path / "part.pt2")(inputs), part(inputs))


def test_tuples_keywords_and_regression_can_be_exported(tmp_path):
    class Pair(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.layer = flat(seed)

        def forward(self, first, second):
            return {"logits": self.layer(first * second)}

    first, second = torch.randn(5, 4), torch.randn(5, 4)
    ensemble = Ensemble([Pair(0), Pair(1)], average())
    save_exported(ensemble, tmp_path / "tuple.pt2", (first, second))
    save_exported(ensemble, tmp_path / "dict.pt2", {"first": first, "second": second})
    expected = ensemble(first[:3], second[:3])
    assert_close(load_exported(tmp_path / "tuple.pt2")(first[:3], second[:3]), expected)
    by_name = load_exported(tmp_path / "dict.pt2")(first=first[:3], second=second[:3])
    assert_close(by_name, expected)
    values = Ensemble([flat(0), flat(1)], average("values"), task="regression", batched=True)
    save_exported(values, tmp_path / "values.pt2", first)
    assert_close(load_exported(tmp_path / "values.pt2")(first[:2]), values(first[:2]))


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    target = tmp_path / "one.pt2"
    target.write_text("precious")
    ensemble = Ensemble([flat(0)], average())
    with pytest.raises(OutputExists):
        save_exported(ensemble, target, torch.randn(2, 4))
    assert target.read_text() == "precious"
    save_exported(ensemble, target, torch.randn(2, 4), overwrite=True)
    assert load_exported(target)(torch.zeros(1, 4)).shape == (1, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["one.pt2"]


class DataBranch(nn.Module):
    def forward(self, inputs):
        return inputs if inputs.sum().item() > 0 else -inputs


class FixedBatch(nn.Module):
    def forward(self, inputs):
        return inputs.reshape(4, 4)[:, :3]


@pytest.mark.parametrize("culprit", [DataBranch, FixedBatch])
def test_a_member_that_cannot_be_exported_is_named(culprit, tmp_path):
    members = {"fine": nn.Identity(), "odd": culprit()}
    ensemble = Ensemble(members, average("values"), task="regression")
    inputs = torch.randn(4, 4)
    if culprit is FixedBatch:
        ensemble = Ensemble({"fine": flat(0), "odd": culprit()}, average())
    with pytest.raises(CheckpointError) as caught:
        save_exported(ensemble, tmp_path / "odd.pt2", inputs)
    assert "\n  odd: " in str(caught.value)
    assert "fine: " not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_has_no_examples_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file"):
        load_exported(tmp_path / "none.pt2")
    (tmp_path / "text.pt2").write_text("not a program")
    with pytest.raises(CheckpointError, match="cannot be read as an exported program"):
        load_exported(tmp_path / "text.pt2")
    with pytest.raises(DataError, match="holds no examples"):
        save_exported(Ensemble([flat(0)], average()), tmp_path / "x.pt2", torch.zeros(0, 4))


def test_programs_with_pickles_are_refused_unless_trusted(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 3), (torch.zeros(4, 2),))
    torch.export.save(program, tmp_path / "with_inputs.pt2")
    with pytest.raises(UnsafeCheckpoint, match=r"sample_inputs/model\.pt"):
        load_exported(tmp_path / "with_inputs.pt2")
    trusted = load_exported(tmp_path / "with_inputs.pt2", trust_pickle=True)
    assert trusted(torch.zeros(4, 2)).shape == (4, 3)


def test_an_exported_program_has_one_mode(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 3), (torch.zeros(4, 2),))
    torch.export.save(program, tmp_path / "linear.pt2")
    module = load_exported(tmp_path / "linear.pt2", trust_pickle=True)
    assert module.train() is module
    assert module.eval().training is False
