"""Weight matching: the order of units in which the weights of models are most alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alloykit.alignment.coordinate_ascent import Pair
from alloykit.alignment.groups import PermutationGroups
from alloykit.alignment.permuting import (
    Permutation,
    apply,
    check_tensors,
    composed,
    drawn,
    identity,
    inverse,
    kept,
)
from alloykit.errors import CheckpointError, InvalidParameter, listing
from alloykit.numerics import compute_dtype, is_averaged, is_whole, unusable_values

ROUNDS = 100
"""Most rounds over all models; a few are usual."""


def match_weights(
    groups: PermutationGroups,
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    *,
    seed: int = 0,
    restarts: int = 0,
) -> Permutation:
    """Find the order of the other model's units that makes its weights most like the reference's.

    maximise Σ over parameters <reference, permuted other>

    One group after another, in random order, gets the permutation that is best while all others
    stay, which is a linear assignment problem; until a round changes nothing. Heads of attention
    and the dimensions within them are found at once. The sum never falls, and where it ends is a
    local optimum: restarts may find a better one, which need not make a better average.

    Use it before averaging models that were trained apart from different starts; models that
    were fine-tuned from one start are aligned already.

    Args:
        groups: Of the architecture of both.
        reference: State dict whose order is the one to reach; stays as it is.
        other: State dict of the same names and shapes.
        seed: Of the order of the groups and of the restarts, at least 0.
        restarts: Random starts to try beside the usual one, which is the present order or the one
            that is found layer by layer, whichever is more alike; at least 0.

    Returns:
        One order per group, for ``apply(groups, permutation, other)``; for a group within another
        one for each of the outer units. Where nothing is gained units keep their places: equal
        models give the identity.

    Raises:
        MismatchedCheckpoints: Tensors that are missing, or models of different widths.
        CheckpointError: NaN or Inf in a tensor that is compared.
        InvalidParameter: A negative seed or number of restarts.

    Example:
        >>> from alloykit.alignment.groups import PermutationGroup, Place
        >>> places = (Place("in", 0), Place("out", 1))
        >>> groups = PermutationGroups(
        ...     (PermutationGroup("hidden", 3, places),), {"in": (3, 2), "out": (1, 3)}
        ... )
        >>> model = {"in": torch.randn(3, 2), "out": torch.randn(1, 3)}
        >>> shuffled = apply(groups, {"hidden": torch.tensor([1, 2, 0])}, model)
        >>> match_weights(groups, model, shuffled)
        {'hidden': tensor([2, 0, 1])}

    References:
        Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2023, arXiv:2209.04836, section 3.2 and
        algorithm 1. Differs from the authors' code: it starts from an order found layer by layer,
        over weights whose other units are settled, where that beats the present one; and a step
        must raise the whole sum, also where a group permutes both dimensions of one weight.
    """
    _check_whole("match_weights", seed=seed, restarts=restarts)
    _check_state(groups, reference, "The reference")
    _check_state(groups, other, "The model to align")
    pair = Pair.of(groups, reference, other)
    starts = [pair.start(), *(drawn(groups, seed + 1 + number) for number in range(restarts))]
    ends = [pair.climbed(start, torch.Generator().manual_seed(seed)) for start in starts]
    return max(ends, key=lambda end: end.similarity).permutation


def similarity(
    groups: PermutationGroups, reference: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> float:
    """What weight matching maximises: Σ <reference, other> over the parameters that groups move.

    Example:
        >>> from alloykit.alignment.groups import PermutationGroup, Place
        >>> groups = PermutationGroups((PermutationGroup("w", 2, (Place("w", 0),)),), {"w": (2,)})
        >>> similarity(groups, {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 1.0])})
        5.0
    """
    return Pair.of(groups, reference, other).similarity()


def match_many(
    groups: PermutationGroups, members: Sequence[Mapping[str, Tensor]], *, seed: int = 0
) -> list[Permutation]:
    """Find the orders in which several models are most alike, all of them together.

    maximise Σ over pairs of members <permuted member, permuted other member>

    Every member is matched to the first; then one after another, in random order, to the mean of
    all others as they stand, until nothing changes. The sum never falls. All orders are given
    relative to the first member, which stays as it is.

    Use it instead of matching each to the first when three or more models are averaged.

    Args:
        groups: Of the architecture of all.
        members: State dicts of the same names and shapes, one or more; they stay as they are.
        seed: Of the orders of members and groups, at least 0.

    Returns:
        One permutation per member; that of the first changes nothing.

    Raises:
        MismatchedCheckpoints: Tensors that are missing, or models of different widths.
        CheckpointError: NaN or Inf in a tensor that is compared.
        InvalidParameter: A negative seed.

    References:
        Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2023, arXiv:2209.04836, appendix A.10,
        algorithm 3 (MergeMany), which begins from the order that the models come in.
    """
    _check_whole("match_many", seed=seed)
    for number, member in enumerate(members):
        _check_state(groups, member, f"Member {number + 1}")
    first, *others = members
    found = [kept(groups), *(match_weights(groups, first, o, seed=seed) for o in others)]
    if len(members) < 3:
        return found
    generator = torch.Generator().manual_seed(seed)
    states = [apply(groups, order, member) for order, member in zip(found, members, strict=True)]
    for _ in range(ROUNDS):
        changed = False
        for index in torch.randperm(len(members), generator=generator).tolist():
            rest = _total(groups, [state for i, state in enumerate(states) if i != index])
            step = Pair.of(groups, rest, states[index]).climbed(kept(groups), generator)
            if step.changed:
                found[index] = composed(groups, found[index], step.permutation)
                states[index] = apply(groups, step.permutation, states[index])
                changed = True
        if not changed:
            break
    back = inverse(groups, found[0])
    return [composed(groups, order, back) for order in found]


def _total(groups: PermutationGroups, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of what is compared; the scale of a reference does not matter."""
    first, *others = states
    sums: dict[tuple[object, ...], Tensor] = {}
    found = {}
    for name in groups.places:
        if name not in groups.buffers and is_averaged(first[name].dtype):
            key = identity(name, first[name])
            if key not in sums:
                total = first[name].to(compute_dtype(first[name].dtype))
                sums[key] = sum((state[name].to(total) for state in others), total)
            found[name] = sums[key]
    return found


def _check_whole(who: str, **numbers: object) -> None:
    wrong = [
        f"{name} must be a whole number of at least 0, not {value!r}"
        for name, value in numbers.items()
        if not is_whole(value) or value < 0
    ]
    if wrong:
        raise InvalidParameter(f"{who}: {'; '.join(wrong)}.")


def _check_state(groups: PermutationGroups, state: Mapping[str, Tensor], who: str) -> None:
    check_tensors(groups, state, who)
    compared = [name for name in groups.places if name not in groups.buffers]
    bad = [f"{name}   {why}" for name in compared if (why := unusable_values(state[name]))]
    if bad:
        raise CheckpointError(
            f"{who} cannot be matched: {len(bad)} of its tensors hold values that no number "
            f"compares with.\n{listing(bad)}\nLeave this model out, or take an earlier checkpoint."
        )
