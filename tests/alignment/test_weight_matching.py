from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alloykit.alignment.coordinate_ascent import Pair, turns
from alloykit.alignment.deriving import permutation_groups
from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.alignment.permuting import apply, composed, drawn, kept
from alloykit.alignment.weight_matching import match_many, match_weights, similarity
from alloykit.errors import CheckpointError, InvalidParameter, MismatchedCheckpoints

seeds = st.integers(0, 2**31)


def chain(*widths: int, buffers: bool = False) -> PermutationGroups:
    """The groups of an MLP of these widths, inputs and outputs included."""
    groups, shapes = [], {}
    for layer, (into, out) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"{layer}.weight": (out, into), f"{layer}.bias": (out,)}
    for layer, size in enumerate(widths[1:-1]):
        axes = [Place(f"{layer}.weight", 0), Place(f"{layer}.bias", 0)]
        if buffers:
            shapes[f"{layer}.mean"] = (size,)
            axes.append(Place(f"{layer}.mean", 0))
        groups.append(PermutationGroup(str(layer), size, (*axes, Place(f"{layer + 1}.weight", 1))))
    names = frozenset(name for name in shapes if name.endswith("mean"))
    return PermutationGroups(tuple(groups), shapes, names)


SQUARE = PermutationGroups(
    (PermutationGroup("s", 5, (Place("in", 0), Place("w", 0), Place("w", 1), Place("out", 1))),),
    {"in": (5, 2), "w": (5, 5), "out": (2, 5)},
)
"""A recurrent weight: one group permutes both of its dimensions."""

HEADS = PermutationGroups(
    (
        PermutationGroup("heads", 2, (Place("q", 0, 3), Place("k", 0, 3), Place("o", 1, 3))),
        PermutationGroup("qk", 3, (Place("q", 0), Place("k", 0))),
        PermutationGroup("v", 3, (Place("o", 1),)),
    ),
    {"q": (6, 4), "k": (6, 4), "o": (5, 6)},
)

FINER = PermutationGroups(
    (
        PermutationGroup(
            "heads", 4, (Place("q", 0, 2), Place("k", 0, 2), Place("v", 0, 2), Place("o", 1, 2))
        ),
        PermutationGroup("qk", 2, (Place("q", 0), Place("k", 0)), "heads"),
        PermutationGroup("v", 2, (Place("v", 0), Place("o", 1)), "heads"),
    ),
    {"q": (8, 4), "k": (8, 4), "v": (8, 4), "o": (5, 8)},
)
"""Heads whose dimensions have an order of their own in each."""

SHARED = PermutationGroups(
    (
        PermutationGroup("kv", 2, (Place("k", 0, 3), Place("q", 0, 6), Place("o", 1, 6))),
        PermutationGroup("rep", 2, (Place("q", 0, 3), Place("o", 1, 3)), "kv"),
        PermutationGroup("d", 3, (Place("q", 0), Place("k", 0)), "kv"),
    ),
    {"q": (12, 4), "k": (6, 4), "o": (5, 12)},
)
"""Two heads of queries for one of keys: two groups within a third lie on one axis."""

EVERY = {
    "chain": chain(4, 6, 5, 3), "square": SQUARE, "heads": HEADS, "finer": FINER, "shared": SHARED
}  # fmt: skip


def random_state(groups, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in groups.shapes.items()
    }


def exact(groups, reference, other, names=None):
    """The similarity, added up in float64, of all or some of the tensors."""
    every = set(groups.places) - groups.buffers if names is None else names
    return sum(float((reference[n].double() * other[n].double()).sum()) for n in every)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["tiny", "heads"])
def test_restarts_find_what_brute_force_finds(seed, kind):
    groups = {"tiny": chain(3, 3, 4, 2), "heads": HEADS}[kind]
    reference, other = random_state(groups, seed), random_state(groups, seed + 1)
    every = itertools.product(*(
        [(g.name, torch.tensor(o)) for o in itertools.permutations(range(g.size))]
        for g in groups.groups
    ))  # fmt: skip
    best = max(exact(groups, reference, apply(groups, dict(orders), other)) for orders in every)
    found = match_weights(groups, reference, other, restarts=40)
    assert exact(groups, reference, apply(groups, found, other)) == pytest.approx(best, rel=1e-5)


def orders(group, blocks):
    """Every order of a group, in each of its outer units."""
    alone = [torch.tensor(order) for order in itertools.permutations(range(group.size))]
    if not group.within:
        return alone
    return [torch.stack(each) for each in itertools.product(alone, repeat=blocks)]


@pytest.mark.parametrize("seed", range(4))
def test_heads_and_their_dimensions_are_found_at_once(seed):
    """Without any restart: one step is the best of all (4! times 2!⁸) orders."""
    reference, other = random_state(FINER, seed), random_state(FINER, seed + 1)
    best = max(
        sum(
            max(
                exact(FINER, reference, moved(FINER, {**heads, name: order}, other, parts), parts)
                for order in orders(FINER[name], 4)
            )
            for name, parts in (("qk", ("q", "k")), ("v", ("v", "o")))
        )
        for heads in ({"heads": order} for order in orders(FINER["heads"], 1))
    )
    found = match_weights(FINER, reference, other)
    assert exact(FINER, reference, apply(FINER, found, other)) == pytest.approx(best, rel=1e-5)


def test_inner_groups_on_one_axis_take_turns():
    assert [sorted(turn.names) for turn in turns(SHARED)] == [["d", "kv"], ["rep"]]
    assert [sorted(turn.names) for turn in turns(FINER)] == [["heads", "qk", "v"]]


def test_a_start_layer_by_layer_finds_a_shuffled_copy():
    groups = chain(6, 16, 12, 3)
    model = random_state(groups, 0)
    shuffled = apply(groups, drawn(groups, 1), model)
    back = apply(groups, Pair.of(groups, model, shuffled).start(), shuffled)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.items())


def test_a_start_is_never_worse_than_the_present_order():
    groups = chain(2, 3, 3, 2)
    model = random_state(groups, 0)
    # The first layer alone would say that two units have changed places.
    other = model | {name: model[name][[1, 0, 2]] for name in ("0.weight", "0.bias")}
    loud = {"1.weight": model["1.weight"] * 100}
    pair = Pair.of(groups, model | loud, other | loud)
    assert pair.layer_by_layer()["0"].tolist() == [1, 0, 2]
    assert pair.start()["0"].tolist() == [0, 1, 2]


def moved(groups, permutation, state, names):
    after = apply(groups, permutation, state)
    return {name: after[name] for name in names}


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(sorted(EVERY)))
def test_no_start_is_ever_left_for_less(seed, kind):
    groups = EVERY[kind]
    reference, other = random_state(groups, seed), random_state(groups, seed + 1)
    pair, start = Pair.of(groups, reference, other), drawn(groups, seed)
    end = pair.climbed(start, torch.Generator().manual_seed(0))
    before = exact(groups, reference, apply(groups, start, other))
    after = exact(groups, reference, apply(groups, end.permutation, other))
    assert after >= before - 1e-9
    assert end.similarity == pytest.approx(after, rel=1e-5, abs=1e-5)
    matched = match_weights(groups, reference, other)
    assert exact(groups, reference, apply(groups, matched, other)) >= exact(
        groups, reference, other
    ) - 1e-9  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]))
def test_a_shuffled_copy_is_brought_back_exactly(seed, dtype):
    groups = chain(6, 16, 12, 3, buffers=True)
    model = random_state(groups, seed, dtype)
    shuffled = apply(groups, drawn(groups, seed), model)
    back = apply(groups, match_weights(groups, model, shuffled), shuffled)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.items())


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from(sorted(EVERY)))
def test_equal_models_keep_their_order(seed, kind):
    model = random_state(EVERY[kind], seed)
    found = match_weights(EVERY[kind], model, {name: t.clone() for name, t in model.items()})
    assert all(torch.equal(found[name], order) for name, order in kept(EVERY[kind]).items())


def test_equal_units_keep_their_order():
    groups = chain(3, 4, 2)
    model = {name: torch.ones(shape) for name, shape in groups.shapes.items()}
    assert match_weights(groups, model, model)["0"].tolist() == [0, 1, 2, 3]
    zeros = {name: torch.zeros(shape) for name, shape in groups.shapes.items()}
    assert match_weights(groups, model, zeros)["0"].tolist() == [0, 1, 2, 3]


def test_buffers_say_nothing_and_are_carried():
    groups = chain(3, 5, 2, buffers=True)
    model = random_state(groups, 0)
    plain = chain(3, 5, 2)
    other = random_state(groups, 1)
    loud = other | {"0.mean": other["0.mean"] * 1e6}
    assert torch.equal(match_weights(groups, model, loud)["0"],
                       match_weights(plain, model, other)["0"])  # fmt: skip


def test_tied_tensors_count_once():
    place = (Place("a", 0), Place("b", 0))
    groups = PermutationGroups((PermutationGroup("g", 2, place),), {"a": (2,), "b": (2,)})
    shared = torch.tensor([1.0, 2.0])
    assert similarity(groups, {"a": shared, "b": shared}, {"a": shared, "b": shared}) == 5.0
    apart = {"a": shared, "b": shared.clone()}
    assert similarity(groups, apart, apart) == 10.0


def test_the_same_seed_gives_the_same_and_nothing_is_modified():
    groups = chain(5, 8, 8, 3)
    reference, other = random_state(groups, 0), random_state(groups, 1)
    first = match_weights(groups, reference, other, seed=4, restarts=2)
    again = match_weights(groups, reference, other, seed=4, restarts=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    fresh = random_state(groups, 1)
    assert all(torch.equal(other[name], fresh[name]) for name in other)


@pytest.mark.parametrize("kind", ["finer", "shared"])
def test_shuffled_heads_come_back(kind):
    groups = EVERY[kind]
    model = random_state(groups, 0)
    for seed in range(5):
        shuffled = apply(groups, drawn(groups, seed), model)
        back = apply(groups, match_weights(groups, model, shuffled, restarts=5), shuffled)
        assert all(torch.equal(back[name], tensor) for name, tensor in model.items())


def test_a_real_network_comes_back():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8),
        nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    groups = permutation_groups(model, torch.randn(2, 2, 6, 6))
    state = model.state_dict()
    shuffled = apply(groups, drawn(groups, 9), state)
    back = apply(groups, match_weights(groups, state, shuffled), shuffled)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def pairs(groups, states):
    return sum(exact(groups, a, b) for a, b in itertools.combinations(states, 2))


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_many_shuffled_copies_come_back_to_the_first(seed):
    groups = chain(6, 16, 12, 3)
    model = random_state(groups, seed)
    members = [apply(groups, drawn(groups, seed + number), model) for number in range(4)]
    orders = match_many(groups, members, seed=seed)
    assert all(torch.equal(order, torch.arange(len(order))) for order in orders[0].values())
    for order, member in zip(orders, members, strict=True):
        back = apply(groups, order, member)
        assert all(torch.equal(back[name], tensor) for name, tensor in members[0].items())


@pytest.mark.parametrize("seed", range(4))
def test_many_are_more_alike_than_when_each_is_matched_to_the_first(seed):
    groups = chain(4, 6, 5, 3)
    members = [random_state(groups, 10 * seed + number) for number in range(4)]
    alone = [kept(groups), *(match_weights(groups, members[0], m) for m in members[1:])]
    together = match_many(groups, members)
    before, after = (
        pairs(groups, [apply(groups, o, m) for o, m in zip(orders, members, strict=True)])
        for orders in (alone, together)
    )
    assert after > before + 1e-3
    assert all(torch.equal(order, torch.arange(len(order))) for order in together[0].values())


def test_sums_of_short_numbers_keep_their_digits():
    """256 + 1 + 1 is 256 in bfloat16, and then no unit of the sum is larger than the other."""
    groups = PermutationGroups((PermutationGroup("w", 2, (Place("w", 0),)),), {"w": (2,)})
    values = [[256.0, 256.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]
    members = [{"w": torch.tensor(value).bfloat16()} for value in values]
    orders = match_many(groups, members)
    assert orders[1]["w"].tolist() != orders[3]["w"].tolist()


def test_two_are_matched_as_a_pair():
    groups = chain(4, 6, 5, 3)
    one, two = random_state(groups, 0), random_state(groups, 1)
    pair, many = match_weights(groups, one, two, seed=1), match_many(groups, [one, two], seed=1)[1]
    assert all(torch.equal(pair[name], many[name]) for name in pair)
    (alone,) = match_many(groups, [one])
    assert torch.equal(composed(groups, alone, kept(groups))["0"], torch.arange(6))


def test_wrong_numbers_are_refused():
    groups = chain(2, 3, 2)
    state = random_state(groups, 0)
    with pytest.raises(InvalidParameter) as caught:
        match_weights(groups, state, state, seed=-1, restarts=1.5)
    assert str(caught.value) == (
        "match_weights: seed must be a whole number of at least 0, not -1; "
        "restarts must be a whole number of at least 0, not 1.5."
    )


def test_other_widths_and_values_that_are_no_numbers_are_refused():
    groups = chain(2, 3, 2)
    state = random_state(groups, 0)
    with pytest.raises(MismatchedCheckpoints, match="The model to align does not have"):
        match_weights(groups, state, random_state(chain(2, 4, 2), 0))
    bad = state | {"0.bias": torch.tensor([1.0, torch.nan, torch.inf])}
    with pytest.raises(
        CheckpointError, match=r"Member 2 cannot be matched(.|\n)*0.bias   1 NaN, 1 Inf"
    ):
        match_many(groups, [state, bad])


def test_members_of_several_dtypes_come_back_together():
    groups = chain(6, 16, 12, 3, buffers=True)
    model = random_state(groups, 0, torch.bfloat16)
    model["1.bias"] *= 1000
    members = [model]
    for seed, dtype in ((1, torch.float32), (2, torch.float64), (3, torch.bfloat16)):
        shuffled = apply(groups, drawn(groups, seed), model)
        members.append({name: tensor.to(dtype) for name, tensor in shuffled.items()})
    for order, member in zip(match_many(groups, members), members, strict=True):
        back = apply(groups, order, member)
        assert all(torch.equal(back[name].bfloat16(), tensor) for name, tensor in model.items())
