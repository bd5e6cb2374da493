from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import alloykit
from alloykit.comparison import inspection
from alloykit.comparison.inspection import Inspection, Pair

NAN, INF = math.nan, math.inf


def tensor(*values, dtype=torch.float32) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values).to(dtype)}


def look(*states, base=None) -> Inspection:
    return alloykit.inspect({f"m{i}": state for i, state in enumerate(states)}, base=base)


def pair(*states, base=None) -> Pair:
    (only,) = look(*states, base=base).pairs
    return only


def test_distances_and_angles_are_those_of_the_whole_model():
    one = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    other = {"a": torch.tensor([0.0, 5.0]), "b": torch.tensor([[12.0]])}
    found = pair(one, other)
    assert found.distance == pytest.approx(math.sqrt(9 + 25 + 64))
    assert found.relative_distance == pytest.approx(math.sqrt(98) / 9)
    assert found.cosine == pytest.approx(48 / (5 * 13))
    assert found.sign_agreement == pytest.approx(1 / 3)
    assert not found.identical


def test_with_a_base_angles_and_signs_are_those_of_the_task_vectors():
    base = tensor(10.0, 10.0, 10.0)
    found = pair(tensor(11.0, 10.0, 9.0), tensor(12.0, 10.0, 11.0), base=base)
    assert found.cosine == pytest.approx((2 - 1) / (math.sqrt(2) * math.sqrt(5)))
    assert found.sign_agreement == 0.5  # one agrees, one does not, one moved in neither
    assert found.distance == pytest.approx(math.sqrt(1 + 4))


@pytest.mark.parametrize("block", [1, 3, 1 << 22])
def test_blocks_do_not_change_the_numbers(block, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    one, other, base = ({"w": torch.randn(7, 5, generator=generator)} for _ in range(3))
    expected = pair(one, other, base=base)
    monkeypatch.setattr(inspection, "BLOCK", block)
    found = pair(one, other, base=base)
    assert found.distance == pytest.approx(expected.distance)
    assert found.cosine == pytest.approx(expected.cosine)
    assert found.sign_agreement == expected.sign_agreement


@pytest.mark.parametrize("block", [1, 2, 1 << 22])
def test_blocks_do_not_change_the_problems(block, monkeypatch):
    monkeypatch.setattr(inspection, "BLOCK", block)
    one = tensor(INF, NAN, 1.0, INF) | {"i": torch.tensor([1, 2, 3])}
    other = tensor(INF, 1.0, 1.0, INF) | {"i": torch.tensor([1, 5, 3])}
    found = look(one, other)
    assert found.problems == (
        "w   m0: 1 NaN, 2 Inf",
        "w   m1: 2 Inf",
        "i   integers differ between m0 and m1",
    )
    assert not found.pairs[0].identical


def test_small_differences_of_large_numbers_are_not_lost():
    found = pair(tensor(1e4, 1.0), tensor(1e4 + 0.0078125, 1.0))
    assert found.distance == 0.0078125


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_precisions_may_differ(dtype):
    found = pair(tensor(1.0, -2.0), tensor(1.0, -2.0, dtype=dtype))
    assert found.identical
    assert (found.distance, found.cosine) == (0.0, pytest.approx(1.0))


def test_complex_tensors_and_scalars_and_empty_ones():
    one = {"c": torch.tensor([3 + 4j]), "s": torch.tensor(2.0), "e": torch.zeros(0, 3)}
    other = {"c": torch.tensor([3 - 4j]), "s": torch.tensor(2.0), "e": torch.zeros(0, 3)}
    found = pair(one, other)
    assert found.distance == pytest.approx(8.0)
    assert found.cosine == pytest.approx((9 - 16 + 4) / (25 + 4))


def test_what_is_tied_counts_once():
    def tied(value: float) -> dict[str, torch.Tensor]:
        shared = torch.tensor([value])
        return {"embed": shared, "head": shared}

    found = look(tied(1.0), tied(4.0))
    assert found.pairs[0].distance == 3.0
    assert found.members[0]["parameters"] == 1
    assert found.members[0]["tied_tensors"] == 1


def test_each_member_is_described():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).half()
    found = alloykit.inspect({"net": net})
    (member,) = found.members
    assert member["id"] == "net"
    assert member["tensors"] == 7
    assert member["parameters"] == 6 + 2 + 2 + 2 + 2 + 2
    assert member["bytes"] == 2 * 16 + 8
    assert member["dtypes"] == ["float16", "int64"]
    assert member["integer_tensors"] == ["1.num_batches_tracked"]
    assert found.combinable
    assert found.pairs == ()
    assert found.verdict == "One checkpoint: nothing to combine it with."


def test_equal_models_have_nothing_to_gain():
    found = look(tensor(1.0), tensor(1.0), tensor(1.0))
    assert found.verdict.startswith("They are the same model")
    assert len(found.pairs) == 3


def test_related_models_can_be_averaged_and_strangers_are_suspected():
    near = look(tensor(1.0, 2.0), tensor(1.1, 2.0))
    assert near.combinable
    assert near.verdict.startswith("Their weights can be averaged. m0 and m1 are farthest apart (0")
    assert "different starts" not in near.verdict
    far = look(tensor(1.0, 0.0), tensor(0.0, 1.0))
    assert "probably trained from different starts" in far.verdict
    assert "see alloykit diagnose" in far.verdict


def test_a_member_that_is_the_base_has_no_angle():
    found = look(tensor(1.0), tensor(2.0), tensor(3.0), base=tensor(1.0))
    assert math.isnan(found.pairs[0].cosine)
    assert "task vectors' cosine at least 1)" in found.verdict
    assert "nan" not in look(tensor(1.0), tensor(2.0), base=tensor(1.0)).verdict


def test_what_does_not_match_is_listed_and_nothing_is_measured():
    found = look(tensor(1.0), tensor(1.0, 2.0))
    assert not found.combinable
    assert found.pairs == ()
    assert found.problems == ("w   m0: [1]   m1: [2]",)
    assert "predictions can be ensembled" in found.verdict


def test_all_values_that_a_merge_would_refuse_are_listed():
    one = tensor(1.0, NAN) | {"v": torch.ones(1), "i": torch.tensor([1]), "b": torch.tensor(True)}
    other = tensor(1.0, 1.0) | {"v": torch.tensor([INF]), "i": torch.tensor([2]),
                                "b": torch.tensor(True)}  # fmt: skip
    found = look(one, other)
    assert found.problems == (
        "w   m0: 1 NaN",
        "v   m1: 1 Inf",
        "i   integers differ between m0 and m1",
    )
    assert math.isfinite(found.pairs[0].distance)


def test_a_single_model_with_nan_has_a_problem_too():
    assert look(tensor(NAN)).problems == ("w   m0: 1 NaN",)


def test_what_a_merge_resolves_is_no_problem():
    mask = torch.full((2, 2), -INF).triu(1)
    states = [
        {"w": torch.tensor([value]), "mask": mask, "bn.num_batches_tracked": torch.tensor(count)}
        for value, count in ((1.0, 3), (2.0, 5))
    ]
    found = look(*states)
    assert found.combinable
    assert found.pairs[0].distance == 1.0
    assert alloykit.average(states)["w"].item() == 1.5


def test_a_base_that_does_not_match_is_a_problem():
    assert "base: [2]" in look(tensor(1.0), tensor(2.0), base=tensor(1.0, 2.0)).problems[0]


def test_prefixes_and_precisions_are_noted(tmp_path):
    wrapped = nn.DataParallel(nn.Linear(2, 2))
    torch.save({"state_dict": wrapped.state_dict(), "epoch": 3}, tmp_path / "run.ckpt")
    found = alloykit.inspect([nn.Linear(2, 2).half(), tmp_path / "run.ckpt"])
    assert found.combinable
    notes = "\n".join(found.notes)
    for text in ("'module.'", "entry state_dict", "left out: epoch", "differ in dtype"):
        assert text in notes
