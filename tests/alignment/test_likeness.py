from __future__ import annotations

import torch

from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.alignment.likeness import alike, of_inner_units, of_units

KV = PermutationGroup("kv", 2, (Place("q", 0, 6), Place("o", 1, 6)))
REP = PermutationGroup("rep", 2, (Place("q", 0, 3), Place("o", 1, 3)), "kv")
DIM = PermutationGroup("dim", 3, (Place("q", 0), Place("o", 1)), "kv")
GROUPS = PermutationGroups((KV, REP, DIM), {"q": (12, 4), "o": (5, 12)})


def states():
    generator = torch.Generator().manual_seed(0)
    return [
        {name: torch.randn(shape, generator=generator) for name, shape in GROUPS.shapes.items()}
        for _ in range(2)
    ]


def factored(state):
    """Both tensors with the axes kv, rep, dim and the rest, in float64."""
    q = state["q"].double().reshape(2, 2, 3, 4)
    o = state["o"].double().T.reshape(2, 2, 3, 5)
    return q, o


def test_units_are_compared_over_everything_else():
    one, two = states()
    expected = sum(
        torch.einsum("krdx,lrdx->kl", a, b)
        for a, b in zip(factored(one), factored(two), strict=True)
    )
    torch.testing.assert_close(of_units(KV, KV.axes, one, two), expected, rtol=1e-5, atol=1e-5)


def test_units_within_others_are_compared_for_every_pair_of_these():
    one, two = states()
    for group, equation in ((REP, "krdx,lsdx->krls"), (DIM, "krdx,lrex->kdle")):
        expected = sum(
            torch.einsum(equation, a, b) for a, b in zip(factored(one), factored(two), strict=True)
        )
        found = of_inner_units(GROUPS, group, group.axes, one, two)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tensors_meet_in_the_wider_dtype_as_real_numbers():
    short, wide = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float64)
    assert [tensor.dtype for tensor in alike(short, short)] == [torch.float32] * 2
    assert [tensor.dtype for tensor in alike(short, wide)] == [torch.float64] * 2
    complex_ = torch.tensor([1 + 2j])
    assert alike(complex_, complex_)[0].tolist() == [[1.0, 2.0]]
