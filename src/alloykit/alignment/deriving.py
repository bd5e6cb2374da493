"""Permutation groups of a model, derived from its own graph and proved by running it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

from torch import Tensor, nn

from alloykit.alignment.axes import Atom, atoms
from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.alignment.permuting import drawn
from alloykit.alignment.proof import Trial, prove
from alloykit.alignment.tracing import Traced, trace
from alloykit.data.batches import Inputs
from alloykit.evaluation.predicting import unwrapped


def permutation_groups(model: nn.Module, inputs: Inputs) -> PermutationGroups:
    """Find which units of a model may change places without changing what it computes.

    The model's graph is traced with torch.export. Every axis of every tensor is a product of
    atoms; operations unify the axes that meet in them and freeze those whose order matters;
    reshapes split atoms (channels times positions, heads times dimensions). What is left free is
    a group. Operations that are not known freeze all that they touch, so that the answer is
    never wrong, and may miss a group. All groups are then permuted at random, on a copy of the
    model with noisy tensors, and the outputs compared.

    Use it before ``match_weights``, or to see which freedom an architecture has.

    Args:
        model: Any module that torch.export can trace; it stays as it is.
        inputs: A batch that it can be called with: a tensor, a tuple for positional or a dict for
            keyword arguments; two examples are enough, and better than one.

    Raises:
        AlignmentError: The model cannot be traced, or the proof fails.
        DataError: The model cannot be run on these inputs.

    Example:
        >>> import torch
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> (hidden,) = permutation_groups(mlp, torch.randn(2, 4)).groups
        >>> hidden.name, hidden.size
        ('0', 8)
        >>> [(place.tensor, place.dimension) for place in hidden.axes]
        [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]

    References:
        Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2023, arXiv:2209.04836, section 3, whose
        code lists the groups of each architecture by hand.
    """
    inner = unwrapped(model)
    traced = trace(inner, inputs)
    places = _places(traced)
    within = _within(places, traced)
    groups = _groups(inner, traced, places, {})
    trial = Trial.of(inner, inputs, noise=0)
    prove(groups, trial)
    return _finer(trial, groups, _groups(inner, traced, places, within))


def _places(traced: Traced) -> dict[Atom, list[Place]]:
    """Where the free atoms lie in the model's tensors."""
    places: dict[Atom, list[Place]] = {}
    for name, axes in traced.axes.items():
        for dimension, axis in enumerate(axes):
            found = atoms(axis)
            for position, atom in enumerate(found):
                if not atom.frozen:
                    stride = math.prod(other.size for other in found[position + 1 :])
                    places.setdefault(atom, []).append(Place(name, dimension, stride))
    return places


def _within(places: dict[Atom, list[Place]], traced: Traced) -> dict[Atom, Atom]:
    """Atoms that lie within another one wherever they are, which may so have several orders.

    In the model's tensors that means on one axis with it; on the way through the model, in one
    tensor with it, so that nothing meets them that does not know the outer unit.
    """
    found: dict[Atom, Atom] = {}
    for atom, where in places.items():
        holders = [
            other
            for other, there in places.items()
            if other is not atom and all(_inside(p, atom, there) for p in where)
        ]
        for outer in holders:
            together = all(outer in seen for seen in traced.together if atom in seen)
            if together and outer not in found:
                found[atom] = outer
                break
    return found


def _inside(place: Place, atom: Atom, outer: list[Place]) -> bool:
    return any(
        (place.tensor, place.dimension) == (other.tensor, other.dimension)
        and other.stride % (atom.size * place.stride) == 0
        for other in outer
    )


def _finer(trial: Trial, groups: PermutationGroups, finer: PermutationGroups) -> PermutationGroups:
    """Groups with orders of their own within others, as far as that can be proved.

    It is not always true: products of all outer units with one another know one order alone.
    """
    if finer == groups or _proved(finer, trial):
        return finer
    proved = groups
    for old, new in zip(groups.groups, finer.groups, strict=True):
        if new.within:
            every = tuple(new if group is old else group for group in proved.groups)
            tried = dataclasses.replace(proved, groups=every)
            proved = tried if _proved(tried, trial) else proved
    return proved


def _proved(groups: PermutationGroups, trial: Trial) -> bool:
    return trial.change(groups, drawn(groups, 0)) <= trial.allowed


def _groups(
    model: nn.Module,
    traced: Traced,
    places: dict[Atom, list[Place]],
    within: dict[Atom, Atom],
) -> PermutationGroups:
    state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names = _names(places, {name: tuple(tensor.shape) for name, tensor in state.items()})
    return PermutationGroups(
        tuple(
            PermutationGroup(
                names[atom],
                atom.size,
                tuple(where),
                names[within[atom]] if atom in within else "",
            )
            for atom, where in places.items()
        ),
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        frozenset(state) - parameters,
        traced.unknown,
    )


def _names(places: dict[Atom, list[Place]], shapes: dict[str, tuple[int, ...]]) -> dict[Atom, str]:
    """A name for every group: the first layer that has the units, and what part of its axis."""
    found = {}
    for atom, where in places.items():
        first = next((place for place in where if len(shapes[place.tensor]) > 1), where[0])
        whole = shapes[first.tensor][first.dimension]
        name = first.tensor.removesuffix(".weight")
        if first.stride > 1:
            name += f" (blocks of {first.stride})"
        elif atom.size < whole:
            name += f" (inside blocks of {atom.size})"
        found[atom] = name
    counts = Counter(found.values())
    seen: Counter[str] = Counter()
    for atom, name in found.items():
        if counts[name] > 1:
            seen[name] += 1
            found[atom] = f"{name} #{seen[name]}"
    return found
