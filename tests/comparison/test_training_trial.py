"""Students and retrained models: what they start from, what they are judged by, what is rebuilt."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import alloykit
from alloykit.comparison.comparing import Comparison
from alloykit.errors import OutputExists
from alloykit.training.settings import Training

TRAINING = Training(epochs=2, batch_size=32)
EVERYTHING = [
    "concat head",
    "concat head on features",
    "log_pool",
    "stacking",
    "distill",
    "retrain",
]
FROM_THE_AVERAGE = {"weight average taught by average", "weight average fine-tuned on validation"}
ON_VALIDATION = {"trained on validation alone", "weight average fine-tuned on validation"}


class Net(nn.Module):
    """A small network whose outputs have a shape of their own."""

    def __init__(self, seed: int, shape: tuple[int, ...] = (3,), width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        count = torch.Size(shape).numel()
        self.shape = shape
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
        self.last = nn.Linear(width, count)
        self.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.body(inputs))
        return outputs.reshape(-1, *self.shape)


class Tagger(nn.Module):
    """One answer per token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.last = nn.Embedding(7, 8), nn.Linear(8, 7)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.words(words))
        return found


class Parameter(nn.Module):
    """A parameter that nothing initialises anew."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, generator=_generator(seed)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.weight


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(seed: int, count: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 4, generator=_generator(seed))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def compare(members: Mapping[str, nn.Module], make: Any = points, **changes: Any) -> Comparison:
    given: dict[str, Any] = {"training": TRAINING, "candidates": ["distill", "retrain"], **changes}
    return alloykit.compare(
        members, train=make(1), validation=make(2), test=make(3), resamples=100, **given
    )


def rows_of(found: Comparison) -> dict[str, Any]:
    return {row.candidate: row for row in found.rows}


def nets(*shape: int) -> dict[str, nn.Module]:
    return {name: Net(seed, shape) for seed, name in enumerate("abc")}


def test_a_weight_average_keeps_its_architecture_where_students_have_another() -> None:
    found = compare(nets(3), student=lambda: nn.Linear(4, 3))
    inputs, labels = points(3)
    for name, row in rows_of(found).items():
        model = found[name].model()
        with torch.no_grad():
            right = (model(inputs).argmax(1) == labels).double().mean()
        assert row.test["accuracy"] == pytest.approx(float(right)), name
        assert isinstance(model, Net if row.family == "member" or "average" in name.split(
            " of ")[0] else nn.Linear), name  # fmt: skip


def test_averages_are_of_the_largest_group_wherever_it_stands() -> None:
    members = {"odd": Net(0, width=5), "one": Net(1), "two": Net(2)}
    rows = rows_of(compare(members))
    assert all(rows[name].status == "done" for name in FROM_THE_AVERAGE)
    assert rows["weight average taught by average"].recipe["start"] == ["one", "two"]


def test_the_average_of_models_with_a_softmax_is_not_trained_whatever_students_are() -> None:
    squeezed = {name: nn.Sequential(net, nn.Softmax(1)) for name, net in nets(3).items()}
    rows = rows_of(compare(squeezed, student=lambda: nn.Linear(4, 3)))
    assert all("training takes logits" in rows[name].reason for name in FROM_THE_AVERAGE)
    assert rows["student of average"].status == "done"


def test_a_model_that_cannot_start_anew_is_skipped_and_its_average_is_rebuilt() -> None:
    found = compare({name: Parameter(seed) for seed, name in enumerate("ab")})
    rows = rows_of(found)
    assert rows["retrained on train"].status == "skipped"
    assert "weight [4, 3] of Parameter" in rows["retrained on train"].reason
    assert "student=" in rows["retrained on train"].reason
    for name in FROM_THE_AVERAGE:
        assert rows[name].status == "done"
        assert found[name].model()(points(3)[0]).shape == (120, 3)


def test_patience_goes_by_validation_and_the_row_says_so() -> None:
    rows = rows_of(compare(nets(3), training=Training(epochs=30, patience=1, learning_rate=0.05)))
    for name, row in rows.items():
        if row.family == "member":
            continue
        assert row.status == "done", (name, row.reason)
        judged = name not in ON_VALIDATION
        assert any("chosen on validation" in note for note in row.notes) == judged, name
        assert row.history["metric"] == ("loss" if judged else "")
        assert (row.validation != {}) == judged


def test_what_learned_on_validation_has_no_score_there_and_is_never_recommended() -> None:
    def seen(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return points(seed, 400)

    found = compare(nets(3), seen, training=Training(epochs=40, learning_rate=0.02),
                    candidates=sorted(ON_VALIDATION))  # fmt: skip
    rows = rows_of(found)
    members = max(rows[name].test["accuracy"] for name in "abc")
    for name in ON_VALIDATION:
        assert rows[name].test["accuracy"] > members + 0.1
        assert rows[name].validation == {}
        assert rows[name].validation_improvement is None
    assert found.recommendation.candidate in "abc"


def test_a_resumed_comparison_notices_another_student_and_another_member(tmp_path: Path) -> None:
    members, given = nets(3), {"output": tmp_path, "candidates": ["student of average"]}
    compare(members, student=lambda: nn.Linear(4, 3), **given)
    compare(members, student=lambda: nn.Linear(4, 3), **given)
    with pytest.raises(OutputExists, match="student"):
        compare(members, student=lambda: nn.Sequential(nn.Linear(4, 3)), **given)
    with torch.no_grad():
        members["b"].get_parameter("last.weight").mul_(2)
    with pytest.raises(OutputExists, match="members"):
        compare(members, student=lambda: nn.Linear(4, 3), **given)


def test_every_candidate_keeps_what_it_learned_in_a_file_of_its_own(tmp_path: Path) -> None:
    found = compare(nets(3), output=tmp_path, candidates=EVERYTHING)
    states = [row.recipe["state"] for row in found.rows if "state" in row.recipe
              and row.recipe["kind"] != "ensemble"]  # fmt: skip
    names = [state["name"].lower() for state in states]
    assert len(names) > 8
    assert len(set(names)) == len(names)
    assert {path.name for path in (tmp_path / "trained").iterdir()} == set(names)


def test_a_student_of_a_fitted_head_says_that_validation_flatters_it() -> None:
    rows = rows_of(compare(nets(3)))
    assert any("fitted on validation" in note for note in rows["student of concat head"].notes)
    assert not any("validation" in note for note in rows["student of average"].notes)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)], ids=str)
def test_values_of_every_shape_are_fused_taught_and_rebuilt(shape: tuple[int, ...]) -> None:
    wanted = torch.randn(4, torch.Size(shape).numel(), generator=_generator(9))

    def values(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(120, 4, generator=_generator(seed))
        return x, (x @ wanted).reshape(-1, *shape)

    found = compare(nets(*shape), values, task="regression", candidates=EVERYTHING)
    _all_done_and_rebuilt(found, values(3)[0], skipped={"log_pool head"})
    targets = values(3)[1]
    outputs = found["concat head on features"].model()(values(3)[0]).reshape(targets.shape)
    away = (outputs - targets).square().mean().sqrt()
    assert rows_of(found)["concat head on features"].test["rmse"] == pytest.approx(float(away))


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_single_logits_are_fused_taught_and_rebuilt(shape: tuple[int, ...]) -> None:
    def two(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(120, 4, generator=_generator(seed))
        return x, (x[:, 0] > 0).long()

    trained = ["attention head", "gated head"] if shape else []
    found = compare(nets(*shape), two, candidates=[*EVERYTHING, *trained])
    _all_done_and_rebuilt(found, two(3)[0])
    reliance = rows_of(found)["concat head"].reliance
    assert [len(line) for line in reliance["matrix"]] == [2, 2, 2]
    student = found["retrained on train"].model()(two(3)[0]).reshape(-1)
    right = ((student > 0).long() == two(3)[1]).double().mean()
    assert rows_of(found)["retrained on train"].test["accuracy"] == pytest.approx(float(right))


def words(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences with padding of unequal length, and examples in which nothing is scored."""
    x = torch.randint(7, (60, 5), generator=_generator(seed))
    labels = (x + 1) % 7
    labels[::2, 3:] = -100
    labels[:2] = -100
    return x, labels


def test_tokens_are_fused_taught_and_rebuilt_whatever_the_padding_holds() -> None:
    members = {name: Tagger(seed) for seed, name in enumerate("abc")}
    found = compare(members, words, task="tokens", candidates=EVERYTHING)
    skipped = {name for name in rows_of(found) if "on features" in name}
    _all_done_and_rebuilt(found, words(3)[0], skipped=skipped)
    assert rows_of(found)["concat head"].validation["accuracy"] > 0.9


def _all_done_and_rebuilt(
    found: Comparison, inputs: torch.Tensor, skipped: set[str] | frozenset[str] = frozenset()
) -> None:
    for name, row in rows_of(found).items():
        assert row.status == ("skipped" if name in skipped else "done"), (name, row.reason)
        if row.status == "done":
            model = found[name].model()
            assert torch.isfinite(model(inputs)).all()
            assert not model.training


def test_members_keep_every_byte_whatever_is_compared() -> None:
    def few(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return points(seed, 30)

    members = nets(3)
    members["b"].train()
    before = {name: copy.deepcopy(net.state_dict()) for name, net in members.items()}
    compare(members, few, candidates=None)
    for name, net in members.items():
        now = net.state_dict()
        assert all(torch.equal(now[key], value) for key, value in before[name].items())
    assert members["b"].training
    assert all(p.requires_grad for net in members.values() for p in net.parameters())


def test_each_example_meets_what_the_teacher_said_of_it() -> None:
    # The student begins as the members, and hardly moves: where rows and teacher belong together,
    # only the labels' loss is left; a teacher of shuffled rows would leave much more.
    member = Net(0)
    found = compare({"a": member, "b": copy.deepcopy(member)}, student=lambda: copy.deepcopy(member),
                    training=Training(epochs=1, batch_size=120, learning_rate=1e-12),
                    candidates=["student of average"])  # fmt: skip
    inputs, labels = points(1)
    with torch.no_grad():
        hard = F.cross_entropy(copy.deepcopy(member).train()(inputs), labels)
        away = _soft_loss(copy.deepcopy(member).train()(inputs), member(inputs))
        shuffled = _soft_loss(copy.deepcopy(member).train()(inputs), member(inputs).roll(1, 0))
    loss = rows_of(found)["student of average"].history["epochs"][0]["loss"]
    assert_close(loss, float(0.5 * hard + 0.5 * away), rtol=0, atol=1e-5)
    assert shuffled > 2 * away


def _soft_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    loss = F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean")
    return 4 * loss
