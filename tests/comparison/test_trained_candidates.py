"""Candidates that are trained: honest scores, kept tensors, the model of a row rebuilt from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import alloykit
from alloykit.comparison.comparing import Comparison
from alloykit.comparison.trained_candidates import AVERAGE
from alloykit.ensembling.adapting import adapted
from alloykit.errors import DataLeak
from alloykit.training.settings import Training
from study_files import blobs, small_net, trained

TRAINING = Training(epochs=3, batch_size=32, seed=1)
STUDENTS = {
    "student of average",
    "student of concat head",
    "weight average taught by average",
    "weight average taught by average, without labels",
}
RETRAINED = {
    "retrained on train",
    "trained on validation alone",
    "weight average fine-tuned on validation",
}


@pytest.fixture(scope="module")
def members() -> dict[str, nn.Module]:
    start = trained(0)
    return {f"tune{seed}": trained(seed, start) for seed in (1, 2, 3)}


def compare(members: Any, **changes: Any) -> Comparison:
    given = {"validation": blobs(200, 10), "test": blobs(300, 11), "resamples": 100, **changes}
    return alloykit.compare(members, **given)


@pytest.fixture(scope="module")
def found(members: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(
        members, train=blobs(250, 12), training=TRAINING,
        candidates=["concat", "attention", "distill", "retrain"],
        output=tmp_path_factory.mktemp("compared"),
    )  # fmt: skip


def test_heads_students_and_retrained_models_have_rows(found: Comparison) -> None:
    by_family: dict[str, set[str]] = {}
    for row in found.rows:
        assert row.status == "done", (row.candidate, row.reason)
        by_family.setdefault(row.family, set()).add(row.candidate)
    assert by_family["student"] == STUDENTS
    assert by_family["retrained"] == RETRAINED
    assert {"concat head", "concat head on features", "attention head"} <= by_family["fusion"]


def test_what_a_row_says_is_what_its_model_does(found: Comparison) -> None:
    inputs, labels = blobs(300, 11)
    for row in found.rows:
        with torch.no_grad():
            said = found[row.candidate].model()(torch.tensor(inputs)).argmax(1).numpy()
        assert row.test["accuracy"] == pytest.approx((said == labels).mean()), row.candidate


def test_training_on_validation_leaves_no_validation_score(found: Comparison) -> None:
    for name in RETRAINED - {"retrained on train"}:
        row = found[name].row
        assert row.validation == {}
        assert row.validation_improvement is None
        assert row.test["accuracy"] > 0.35
        assert any("no validation score" in note for note in row.notes)


def test_the_validation_score_of_a_head_is_cross_fitted(members: dict[str, nn.Module]) -> None:
    inputs, labels = blobs(60, 10)
    random = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0)).numpy()
    fit = compare(members, validation=(inputs, random), candidates=["concat"])
    head = fit["concat head on features"]
    with torch.no_grad():
        own = head.model()(torch.tensor(inputs)).argmax(1).numpy()
    # On labels that mean nothing, a head scored on its own rows would look better than it is.
    assert head.row.validation["accuracy"] < (own == random).mean()
    assert labels.shape == random.shape


def test_training_is_told_epoch_by_epoch_and_takes_time(found: Comparison) -> None:
    for name in STUDENTS | RETRAINED:
        row = found[name].row
        assert [epoch["number"] for epoch in row.history["epochs"]] == [1, 2, 3]
        assert row.costs is not None
        assert row.costs.fit_seconds > 0
        assert row.costs.forward_passes == 1


def test_reliance_has_a_number_per_member_and_class(found: Comparison) -> None:
    for name in ("concat head", "attention head"):
        reliance = found[name].row.reliance
        assert reliance["members"] == ["tune1", "tune2", "tune3"]
        assert len(reliance["classes"]) == 3
        assert [len(line) for line in reliance["matrix"]] == [3, 3, 3]
    attended = torch.tensor(found["attention head"].row.reliance["matrix"])
    assert_close(attended.sum(0), torch.ones(3), rtol=0, atol=1e-5)


def test_saved_winners_run_alone(found: Comparison, tmp_path: Path) -> None:
    inputs = torch.tensor(blobs(300, 11)[0])
    fused = found["concat head"].save(tmp_path / "fused.pt2")
    assert_close(alloykit.load_exported(fused)(inputs), found["concat head"].model()(inputs),
                 rtol=0, atol=1e-6)  # fmt: skip
    weights = found["student of average"].save(tmp_path / "student.safetensors")
    student = small_net()
    student.load_state_dict(_state(weights))
    with torch.no_grad():
        assert_close(student(inputs), found["student of average"].model()(inputs))


def _state(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = alloykit.open_checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.specs()}


def test_an_interrupted_comparison_does_not_train_again(
    members: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"train": blobs(250, 12), "training": TRAINING, "output": tmp_path,
             "candidates": ["concat", "student of average"]}  # fmt: skip
    before = compare(members, **given)

    def never(*_: Any) -> Any:
        raise AssertionError("tried again")

    monkeypatch.setattr("alloykit.comparison.comparing.try_candidate", never)
    again = compare(members, **given)
    assert [row.test for row in again.rows] == [row.test for row in before.rows]
    inputs = torch.tensor(blobs(20, 3)[0])
    for name in ("concat head", "student of average"):
        assert torch.equal(again[name].model()(inputs), before[name].model()(inputs))


def test_what_was_learned_and_lost_is_learned_again(
    members: dict[str, nn.Module], tmp_path: Path
) -> None:
    given = {"output": tmp_path, "candidates": ["concat"]}
    before = compare(members, **given)
    for path in (tmp_path / "trained").iterdir():
        path.unlink()
    again = compare(members, **given)
    assert again["concat head"].row.test == before["concat head"].row.test
    assert any((tmp_path / "trained").iterdir())


def test_other_settings_of_training_are_another_comparison(
    members: dict[str, nn.Module], tmp_path: Path
) -> None:
    given = {"train": blobs(250, 12), "output": tmp_path, "candidates": [AVERAGE]}
    compare(members, training=TRAINING, **given)
    with pytest.raises(alloykit.AlloyError, match="training"):
        compare(members, training=Training(epochs=4), **given)


def test_nothing_is_trained_unless_asked_for(members: dict[str, nn.Module]) -> None:
    rows = {row.candidate: row for row in compare(members, candidates=["distill", "retrain"]).rows}
    assert all("training={" in rows[name].reason for name in STUDENTS)
    untaught = compare(members, training=TRAINING, candidates=["distill"])
    reasons = {row.reason for row in untaught.rows if row.family == "student"}
    assert reasons == {"It trains on the train split, and none was given."}


def test_models_that_return_probabilities_are_not_retrained(members: dict[str, nn.Module]) -> None:
    squeezed = {n: nn.Sequential(m, nn.Softmax(dim=1)) for n, m in members.items()}
    rows = compare(
        squeezed, train=blobs(250, 12), training=TRAINING, candidates=["student of average"]
    ).rows
    assert "training takes logits" in rows[-1].reason
    given = compare(
        squeezed, train=blobs(250, 12), training=TRAINING, student=small_net,
        candidates=["student of average"],
    )  # fmt: skip
    assert given["student of average"].row.status == "done"


def test_a_student_may_be_of_another_architecture(members: dict[str, nn.Module]) -> None:
    found = compare(
        members, train=blobs(250, 12), training=TRAINING,
        student=lambda: nn.Linear(2, 3), candidates=["student of average"],
    )  # fmt: skip
    assert isinstance(found["student of average"].model(), nn.Linear)


def test_validation_seen_in_training_is_said_beside_the_heads(
    members: dict[str, nn.Module],
) -> None:
    inputs, labels = blobs(200, 10)
    found = compare(members, train=(inputs[:50], labels[:50]), candidates=["concat"])
    notes = " ".join(found["concat head"].row.notes)
    assert "50 validation examples are also training examples" in notes
    assert any("50 of 200 validation examples" in warning for warning in found.warnings)
    with pytest.raises(DataLeak, match="train and validation share 50"):
        compare(members, train=(inputs[:50], labels[:50]), training=TRAINING)


def test_values_are_fused_and_taught_too() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(240, 2)
    values = inputs @ torch.tensor([[1.0], [-2.0]])
    members = [nn.Linear(2, 1), nn.Linear(2, 1)]
    with torch.no_grad():
        for place, member in enumerate(members):
            member.weight.zero_()[0, place] = 1.0
    rows = [(inputs[i : i + 80], values[i : i + 80, 0]) for i in (0, 80, 160)]
    found = alloykit.compare(
        members, train=rows[0], validation=rows[1], test=rows[2], task="regression",
        training=Training(epochs=60, learning_rate=3e-2), resamples=100,
        candidates=["concat", "distill", "retrain"],
    )  # fmt: skip
    left = {row.candidate: row.reason for row in found.rows if row.status != "done"}
    assert list(left) == ["concat head on features"]
    assert "no features to find" in left["concat head on features"]
    assert found["concat head"].row.test["rmse"] < 0.5
    assert found["retrained on train"].row.test["rmse"] < 0.5


def test_members_that_are_adapted_differently_are_not_averaged(
    members: dict[str, nn.Module],
) -> None:
    one, two, three = members.values()
    differing = {"a": adapted(one, mean=[0.0, 0.0], std=[1.0, 1.0]),
                 "b": adapted(two, mean=[0.5, 0.0], std=[1.0, 1.0]),
                 "c": adapted(three, mean=[0.5, 0.0], std=[1.0, 1.0])}  # fmt: skip
    found = compare(differing, candidates=["linear", "average"])
    merged = [row for row in found.rows if row.family == "weights" and row.status == "done"]
    assert {row.members for row in merged} == {("b", "c")}
