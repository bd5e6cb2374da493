"""What a round does with each tensor, and whether an update has that structure."""

from __future__ import annotations

import pytest
import torch

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import InvalidParameter
from alloykit.federation.structure import (
    common_structure,
    disagreement,
    misfit,
    refuse_globs,
    resolved,
    structure_of,
)

INF = float("inf")


def opened(**tensors):
    return MemoryCheckpoint({n.replace("__", "."): t for n, t in tensors.items()}, "m")


def sample(seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    embed = torch.randn(3, 2, generator=generator)
    return opened(
        embed=embed,
        bn__running_mean=torch.randn(2, generator=generator),
        bn__num_batches_tracked=torch.tensor(4),
        mask=torch.tensor([0.0, -INF]),
        ids=torch.arange(3),
        flags=torch.tensor([True, False]),
        phase=torch.randn(2, generator=generator, dtype=torch.complex64),
        head=embed,
        **more,
    )


def test_each_tensor_is_averaged_agreed_or_tied():
    found = structure_of(sample())
    assert found.averaged == ("embed", "bn.running_mean", "phase")
    assert found.agreed == ("bn.num_batches_tracked", "mask", "ids", "flags")
    assert found.tied == {"head": "embed"}
    assert found.sent == (*found.averaged, *found.agreed)
    assert list(found.specs) == list(sample().specs())


def test_complex_elements_are_two_real_ones():
    found = structure_of(sample())
    assert (found.numel("phase"), found.numel("embed")) == (4, 6)
    assert (found.wide("phase"), found.wide("embed")) == (torch.float32, torch.float32)
    assert torch.equal(
        found.shaped("phase", torch.tensor([1.0, 2.0, 3.0, 4.0])), torch.tensor([1 + 2j, 3 + 4j])
    )


def test_a_tensor_of_nan_is_no_mask():
    found = structure_of(opened(w=torch.tensor([float("nan"), INF]), e=torch.zeros(0)))
    assert found.averaged == ("w", "e")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_masks_in_small_formats(dtype):
    held = torch.tensor([0.0, -INF]).to(dtype)
    found = structure_of(opened(w=held, x=torch.ones(2).to(dtype)))
    # The float8 format has no infinity: it becomes NaN, which is no mask.
    assert found.agreed == (("w",) if bool(held.float().isinf().any()) else ())


@pytest.mark.parametrize("glob", ["head", "embed", "*e[am]*d"])
def test_what_is_kept_under_one_name_is_kept_under_all(glob):
    found = structure_of(sample(), [glob])
    assert "embed" not in found.sent
    assert "bn.running_mean" in found.sent


def test_globs_that_match_nothing_are_refused_together():
    with pytest.raises(InvalidParameter, match="match none of the model's 8 tensors") as caught:
        refuse_globs(["bn.*", "heads", "x*"], sample())
    assert "'heads'. Did you mean 'head'" in str(caught.value)
    assert "'x*'" in str(caught.value)
    assert "bn.*" not in str(caught.value)


def test_the_order_of_names_and_kept_ones_do_not_matter():
    structure = structure_of(sample(), ["bn.*"])
    other = sample(1)
    turned = {name: other.read(name) for name in reversed(list(other.specs()))}
    del turned["bn.running_mean"], turned["bn.num_batches_tracked"]
    assert misfit(structure, MemoryCheckpoint(turned, "x"), exact=True) == ""


def test_a_tied_name_may_be_left_out():
    other = {name: sample().read(name) for name in sample().specs() if name != "head"}
    assert misfit(structure_of(sample()), MemoryCheckpoint(other, "x"), exact=True) == ""


def test_precision_may_differ_where_the_kind_is_asked_for():
    structure = structure_of(opened(w=torch.ones(2)))
    assert misfit(structure, opened(w=torch.ones(2).half()), exact=False) == ""
    assert misfit(structure, opened(w=torch.ones(2).half()), exact=True) == (
        "w is float16, the server's float32"
    )
    for other in (torch.ones(2).long(), torch.ones(2).to(torch.complex64)):
        assert misfit(structure, opened(w=other), exact=False) != ""


def changed(**tensors):
    state = {name: sample().read(name) for name in sample().specs()}
    return MemoryCheckpoint({**state, **{n.replace("__", "."): t for n, t in tensors.items()}}, "x")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, ""),
        ({"bn__num_batches_tracked": torch.tensor(99)}, ""),
        ({"ids": torch.tensor([0, 1, 3])}, "ids differs from the server's, and integers are never averaged"),
        ({"flags": torch.tensor([True, True])}, "flags differs from the server's, and integers"),
        ({"mask": torch.tensor([-INF, 0.0])}, "mask differs from the server's, and masks with infinities"),
        ({"mask": torch.tensor([0.0, INF])}, "mask differs"),
        ({"head": torch.zeros(3, 2)}, "head and embed differ, which the server has as one tensor"),
        ({"head": torch.zeros(5)}, "head and embed differ"),
        ({"head": sample().read("embed").clone()}, ""),
    ],
)  # fmt: skip
def test_what_is_never_averaged_must_agree(tensors, reason):
    server = sample()
    found = disagreement(structure_of(server), server, changed(**tensors), delta=False)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_changes_need_not_agree():
    server = sample()
    delta = changed(ids=torch.tensor([1, 1, 1]), mask=torch.tensor([0.0, float("nan")]))
    assert disagreement(structure_of(server), server, delta, delta=True) == ""


def test_counters_become_the_largest():
    server = sample()
    structure = structure_of(server)
    counts = [(changed(bn__num_batches_tracked=torch.tensor(n)), d) for n, d in ((9, False), (2, False), (6, True))]  # fmt: skip
    found = dict(resolved(structure, server, counts))
    assert found["bn.num_batches_tracked"] == torch.tensor(10)
    assert found["bn.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(found["mask"], server.read("mask"))
    found["ids"].add_(1)
    assert torch.equal(server.read("ids"), torch.arange(3))


def test_a_counter_never_goes_back():
    server = sample()
    late = [(changed(bn__num_batches_tracked=torch.tensor(1)), False)]
    assert dict(resolved(structure_of(server), server, late))["bn.num_batches_tracked"] == 4


def models(*values):
    return {f"c{i}": value for i, value in enumerate(values)}


def test_without_a_server_most_decide_on_names_and_shapes():
    found, odd = common_structure(
        models(opened(w=torch.ones(3)), opened(w=torch.ones(2)), opened(w=torch.zeros(2))), exact=True
    )  # fmt: skip
    assert found.specs["w"].shape == (2,)
    assert odd == {"c0": "w is [3], the usual model's [2]"}


def test_without_a_server_one_infinity_does_not_make_a_mask():
    bad = opened(w=torch.tensor([INF, 1.0]))
    found, odd = common_structure(models(bad, *[opened(w=torch.ones(2))] * 3), exact=True)
    assert found.averaged == ("w",)
    assert odd == {}  # its values are looked at later


def test_without_a_server_most_decide_on_masks_and_integers():
    mask = torch.tensor([0.0, -INF])
    good = [opened(m=mask.clone(), i=torch.tensor(1)) for _ in range(3)]
    bad = opened(m=mask.clone(), i=torch.tensor(7))
    found, odd = common_structure(models(bad, *good), exact=True)
    assert found.agreed == ("m", "i")
    assert odd == {"c0": "i differs from the usual model's, and integers are never averaged"}


def test_of_two_as_frequent_the_first_counts():
    found, odd = common_structure(models(opened(w=torch.ones(3)), opened(w=torch.ones(2))), exact=True)  # fmt: skip
    assert found.specs["w"].shape == (3,)
    assert list(odd) == ["c1"]
