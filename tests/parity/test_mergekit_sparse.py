"""mergekit 0.1.5 and this project agree, under compat, on the methods that sparsify and elect.

What is drawn at random is compared by its distribution. Deliberate differences have a test of
their own here.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from alloykit.execution.scanning import merge_whole
from alloykit.registry import merge_methods
from alloykit.types import TensorGroup

merge_tensors = pytest.importorskip("mergekit.merge_methods.api").merge_tensors

SHAPES = [(), (1,), (7,), (1, 9), (9, 1), (5, 8), (40, 33), (70, 100), (6, 4, 3, 3)]
shapes = st.sampled_from(SHAPES)
matrices = st.sampled_from([(7,), (5, 8), (40, 33), (6, 4, 3, 3)])
seeds = st.integers(0, 2**31)
spreads = st.sampled_from([1e-4, 0.01, 0.3, 3.0])
densities = st.floats(0.0, 1.0)
scales = st.sampled_from([1.0, 0.3, -0.5])
switch = st.booleans()
COMPAT = {"compat": "mergekit"}


@st.composite
def weighted(draw, either_sign: bool = True):
    """One weight for each of one to five members."""
    least = -1.5 if either_sign else 0.05
    weights = st.floats(least, 2.0).filter(lambda weight: abs(weight) > 0.05)
    return draw(st.lists(weights, min_size=1, max_size=5))


def drawn(shape, seed: int, count: int, spread: float) -> tuple[Tensor, list[Tensor]]:
    """A base, and members at that distance from it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    members = [base + spread * torch.randn(shape, generator=generator) for _ in range(count)]
    # Equal magnitudes at a threshold: mergekit keeps some of them, this project all.
    deltas = [(member - base).abs() for member in members]
    assume(all(len(delta.unique()) == delta.numel() for delta in deltas))
    return base, members


def ours(name, base, members, weights=None, **parameters) -> Tensor:
    method = merge_methods.build(name, **parameters)
    count = len(members)
    default = 1.0 if method.weights == "factors" else 1.0 / count
    names = tuple(f"m{i}" for i in range(count))
    weights = tuple(weights or [default] * count)
    group = TensorGroup("w", names, tuple(members), weights, base=base)
    return merge_whole(method, group)


def theirs(name, base, members, **parameters) -> Tensor:
    return merge_tensors([base, *members], name, parameters=parameters, base_index=0)


def wide(base, members):
    return base.double(), [member.double() for member in members]


def assert_same(found: Tensor, name, base, members, **parameters) -> None:
    """Within 1e-6 of mergekit, unless rounding decides what it keeps or elects."""
    expected = theirs(name, base, members, **parameters)
    size = max(1.0, *(float(member.abs().amax()) for member in members))
    size *= max(1.0, sum(map(abs, parameters.get("weight", [1.0]))))
    exact = theirs(name, *wide(base, members), **parameters)
    assume(bool(((expected - exact).abs() < 1e-5 * size).all()))
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * size)


def cancelling(weights) -> bool:
    """Sums of weights of both signs near zero, by which mergekit divides rounding errors."""
    sums = {0.0}
    for weight in weights:
        sums |= {total + weight for total in sums}
    return any(0.0 < abs(total) < 0.05 for total in sums)


@given(shapes, seeds, spreads, weighted(), densities, scales, switch, switch)
def test_ties(shape, seed, spread, weights, density, scale, normalize, rescale):
    assume(not cancelling(weights))
    base, members = drawn(shape, seed, len(weights), spread)
    found = ours(
        "ties", base, members, weights,
        density=density, scale=scale, normalize=normalize, rescale=rescale, **COMPAT,
    )  # fmt: skip
    assert_same(
        found, "ties", base, members,
        weight=weights, density=density, normalize=normalize, rescale=rescale,
        **{"lambda": scale},
    )  # fmt: skip


@given(seeds, st.lists(densities, min_size=3, max_size=3))
def test_ties_with_a_density_for_each_member(seed, density):
    base, members = drawn((40, 33), seed, 3, 0.3)
    found = ours("ties", base, members, density=density, **COMPAT)
    assert_same(found, "ties", base, members, weight=[1.0] * 3, density=density)


@given(shapes, seeds, spreads, weighted(), densities, st.floats(0.0, 0.5), scales, switch, switch)
@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(name, shape, seed, spread, weights, density, gamma, scale, normalize, rescale):
    assume(not cancelling(weights))
    base, members = drawn(shape, seed, len(weights), spread)
    settings = {"density": density, "gamma": gamma, "normalize": normalize, "rescale": rescale}
    found = ours(name, base, members, weights, scale=scale, **settings, **COMPAT)
    assert_same(
        found, name, base, members, weight=weights, **settings, **{"lambda": scale}
    )  # fmt: skip


@given(matrices, seeds, spreads, weighted(), scales, switch)
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_that_keep_everything(name, shape, seed, spread, weights, scale, normalize):
    assume(not cancelling(weights))
    base, members = drawn(shape, seed, len(weights), spread)
    found = ours(name, base, members, weights, scale=scale, normalize=normalize, **COMPAT)
    assert_same(
        found, name, base, members, weight=weights, normalize=normalize, **{"lambda": scale}
    )


@given(shapes, seeds, spreads, st.integers(1, 5), densities)
def test_sce(shape, seed, spread, count, select_topk):
    base, members = drawn(shape, seed, count, spread)
    found = ours("sce", base, members, select_topk=select_topk, **COMPAT)
    assert_same(found, "sce", base, members, select_topk=select_topk)


@given(shapes, seeds, spreads, st.integers(1, 5), st.sampled_from([0.0, 1e-5, 1e-4, 0.2]))
def test_ram(shape, seed, spread, count, epsilon):
    base, members = drawn(shape, seed, count, spread)
    found = ours("ram", base, members, epsilon=epsilon)
    assert_same(found, "ram", base, members, epsilon=epsilon)


@given(shapes, seeds, spreads, st.integers(1, 5), st.sampled_from([1e-5, 1e-4, 0.2]),
       st.floats(-1.0, 1.0), st.floats(0.0, 2.0))  # fmt: skip
def test_ramplus_tl(shape, seed, spread, count, epsilon, r, alpha):
    base, members = drawn(shape, seed, count, spread)
    settings = {"epsilon": epsilon, "r": r, "alpha": alpha}
    found = ours("ramplus_tl", base, members, **settings)
    assert_same(found, "ramplus_tl", base, members, **settings)


@given(shapes, seeds, spreads)
def test_arcee_fusion(shape, seed, spread):
    """In float64: in float32 mergekit's importances are mostly rounding."""
    base, members = wide(*drawn(shape, seed, 1, spread))
    found, expected = (
        ours("arcee_fusion", base, members, **COMPAT),
        theirs("arcee_fusion", base, members),
    )
    assert float((found - expected).abs().gt(1e-12).double().mean()) <= 0.01 / base.numel() ** 0.5


# By distribution.

LARGE = (200, 400)


def kept_by(name, seed: int, run, **parameters) -> tuple[Tensor, Tensor]:
    """A task vector, and what became of it."""
    generator = torch.Generator().manual_seed(seed)
    base, delta = torch.zeros(LARGE), 0.01 * torch.randn(LARGE, generator=generator)
    # Another seed than that of the elements, which would decide together what is kept.
    torch.manual_seed(seed + 1000)
    return delta, run(name, base, [delta], **parameters)


def each(name, seed, density, **parameters):
    yield kept_by(name, seed, ours, density=density, **parameters, **COMPAT)
    yield kept_by(name, seed, theirs, density=density, weight=[1.0], **parameters)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_keeps_as_many_at_the_same_scale(name, density):
    for delta, merged in each(name, 1, density):
        kept = merged != 0.0
        deviation = (density * (1 - density) / kept.numel()) ** 0.5
        assert abs(float(kept.double().mean()) - density) < 5 * deviation
        scale = merged[kept] / delta[kept]
        torch.testing.assert_close(scale, torch.full_like(scale, float(scale.median())))
        torch.testing.assert_close(merged.abs().sum(), delta.abs().sum(), rtol=1e-5, atol=0)
        assert float(scale.median()) == pytest.approx(1 / density, rel=0.05)
        assert abs(float(merged.mean() - delta.mean())) < 5 * 0.01 / (density * kept.numel()) ** 0.5


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_without_rescaling_what_is_kept_stays_as_it_is(name):
    for delta, merged in each(name, 2, 0.5, rescale=False):
        kept = merged != 0.0
        assert torch.equal(merged[kept], delta[kept])


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_keeps_as_many_of_each_rank(name):
    for delta, merged in each(name, 3, 0.5, epsilon=0.3):
        ranks = delta.abs().argsort(1).argsort(1).double() / (LARGE[1] - 1)
        for low in (0.0, 0.25, 0.5, 0.75):
            chosen = (ranks >= low) & (ranks < low + 0.25)
            expected = 0.2 + 0.6 * float(ranks[chosen].mean())
            share = float((merged[chosen] != 0.0).double().mean())
            assert abs(share - expected) < 5 * (0.25 / int(chosen.sum())) ** 0.5
        torch.testing.assert_close(merged.abs().sum(), delta.abs().sum(), rtol=1e-5, atol=0)


# In bfloat16 no further from float64 than mergekit.


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ties", {"density": 0.5}),
        ("ties", {"density": 0.2, "normalize": False}),
        ("breadcrumbs", {"density": 0.5, "gamma": 0.02}),
        ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.02}),
        ("dare_ties", {"density": 1.0}),
        ("sce", {"select_topk": 0.5}),
        ("ram", {}),
        ("ramplus_tl", {}),
    ],
)
def test_bfloat16_is_no_further_from_float64(name, settings):
    generator = torch.Generator().manual_seed(4)
    base = 0.02 * torch.randn(300, 400, generator=generator)
    members = [base + 5e-4 * torch.randn(300, 400, generator=generator) for _ in range(3)]
    base, members = base.bfloat16(), [member.bfloat16() for member in members]
    compat = {} if name.startswith("ram") else COMPAT
    weights = {} if name in ("sce", "ram", "ramplus_tl") else {"weight": [1.0] * 3}
    single = ours(name, base.float(), [m.float() for m in members], **settings, **compat)
    exact = ours(name, *wide(base, members), **settings, **compat)
    error = (single.bfloat16().double() - exact).square().mean().sqrt()
    their_exact = theirs(name, *wide(base, members), **settings, **weights)
    # Its ramplus_tl gives float32 for bfloat16.
    there = theirs(name, base, members, **settings, **weights).bfloat16()
    their_error = there.double() - their_exact
    assert float(error) <= 1.01 * float(their_error.square().mean().sqrt())


# Deliberate differences.


def test_votes_that_balance_count_as_positive_there_and_add_nothing_here():
    base, members = torch.zeros(1), [torch.tensor([0.5]), torch.tensor([-0.5])]
    expected = theirs("ties", base, members, weight=[1.0, 1.0], density=1.0)
    assert expected.item() == 0.5
    assert ours("ties", base, members, density=1.0, **COMPAT).item() == 0.5
    assert ours("ties", base, members, density=1.0).item() == 0.0


def test_dare_divides_by_the_density_here_and_matches_a_norm_there():
    delta = torch.ones(64)
    torch.manual_seed(0)
    there = theirs("dare_linear", torch.zeros(64), [delta], weight=[1.0], density=0.3)
    here = ours("dare_linear", torch.zeros(64), [delta], density=0.3)
    assert here.unique().tolist() == pytest.approx([0.0, 1 / 0.3])
    assert there.amax().item() != pytest.approx(1 / 0.3, rel=1e-3)
    assert there.sum().item() == pytest.approx(64.0)


def test_sces_weights_do_not_depend_on_the_scale_here():
    generator = torch.Generator().manual_seed(5)
    small, large = (torch.randn(1000, generator=generator).abs() for _ in range(2))
    members = [1e-4 * small, 5e-4 * large]
    base = torch.zeros(1000)
    there = theirs("sce", base, members)
    torch.testing.assert_close(there, (members[0] + members[1]) / 2)
    share = members[1].square().sum() / (members[0].square().sum() + members[1].square().sum())
    here = ours("sce", base, members, select_topk=1.0)
    torch.testing.assert_close(here, (1 - share) * members[0] + share * members[1])
    assert share > 0.9


def test_arcee_fusion_in_bfloat16_takes_what_float64_takes_here_and_not_there():
    generator = torch.Generator().manual_seed(6)
    base = (0.02 * torch.randn(64, 256, generator=generator)).bfloat16()
    member = (base.float() + 1e-3 * torch.randn(64, 256, generator=generator)).bfloat16()
    changed = member != base
    exact = (ours("arcee_fusion", *wide(base, [member])) == member.double())[changed]
    here = (ours("arcee_fusion", base.float(), [member.float()]) == member.float())[changed]
    there = (theirs("arcee_fusion", base, [member]).float() == member.float())[changed]
    assert torch.equal(here, exact)
    assert int((there & exact).sum()) < 0.5 * int((there | exact).sum())


def test_a_row_of_one_element_is_an_error_in_mergekits_della():
    base, member = torch.zeros(4, 1), torch.ones(4, 1)
    with pytest.raises(RuntimeError):
        theirs("della_linear", base, [member], weight=[1.0], density=0.5)
    merged = ours("della_linear", base, [member], density=0.5)
    assert set(merged.flatten().tolist()) <= {0.0, 2.0}
