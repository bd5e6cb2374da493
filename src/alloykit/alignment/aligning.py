"""Models aligned: copies of them with their units in the order of the first."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from alloykit.alignment.deriving import permutation_groups
from alloykit.alignment.groups import PermutationGroups
from alloykit.alignment.permuting import check_tensors
from alloykit.alignment.proof import Trial, check_same, permute, prove
from alloykit.alignment.weight_matching import match_many
from alloykit.data.batches import Inputs
from alloykit.errors import AlignmentError, MismatchedCheckpoints, MissingInput, listing
from alloykit.evaluation.predicting import unwrapped


def aligned(
    members: Sequence[nn.Module],
    inputs: Inputs,
    *,
    groups: PermutationGroups | None = None,
    seed: int = 0,
) -> list[nn.Module]:
    """Bring the units of models into one order, so that their weights can be averaged.

    The permutation groups come from the first member's graph; the orders from matching weights,
    of all members together where there are three or more. What each member computes stays the
    same, which is checked.

    Use it on models of one architecture that were trained apart from different starts. After
    averaging, BatchNorm statistics have to be estimated again.

    Args:
        members: Of one architecture and one width, in any order; they stay as they are.
        inputs: A batch that each can be called with: a tensor, a tuple or a dict.
        groups: Written by hand, for an architecture that cannot be traced; they are proved like
            those that are derived.
        seed: Of the matching, at least 0.

    Returns:
        The first member itself, and a permuted copy of every other.

    Raises:
        MissingInput: No members.
        MismatchedCheckpoints: Members that differ in names or shapes of tensors.
        AlignmentError: A model that cannot be traced, computes something else afterwards, or has
            units that only operations touch that are not known.
        CheckpointError: NaN or Inf in a member's parameters.

    Example:
        >>> import torch
        >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
        >>> batch = torch.randn(4, 3)
        >>> first, second = aligned(models, batch)
        >>> first is models[0], torch.allclose(second(batch), models[1](batch), atol=1e-5)
        (True, True)
    """
    if not members:
        raise MissingInput("There are no models to align. Give two or more of one architecture.")
    inner = [unwrapped(member) for member in members]
    states = [_state(model) for model in inner]
    _check_alike(states)
    if len(members) == 1:
        return list(members)
    if groups is None:
        groups = permutation_groups(inner[0], inputs)
    else:
        check_tensors(groups, states[0], "Member 1")
        prove(groups, Trial.of(inner[0], inputs, noise=0))
    if groups.unknown and not groups.groups:
        raise AlignmentError(
            f"{type(inner[0]).__name__} has no units that are known to be free: it is made of "
            f"operations whose effect is not known ({', '.join(groups.unknown)}). Write its groups "
            "by hand as PermutationGroups, or combine its predictions instead."
        )
    found: list[nn.Module] = [members[0]]
    orders = match_many(groups, states, seed=seed)
    for number, (member, order) in enumerate(zip(members[1:], orders[1:], strict=True), 2):
        trial = Trial.of(unwrapped(member), inputs)
        check_same(groups, order, trial, f"Member {number}")
        copied = copy.deepcopy(member)
        permute(unwrapped(copied), groups, order)
        found.append(copied)
    return found


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}


def _check_alike(states: Sequence[dict[str, Tensor]]) -> None:
    first, *others = states
    wrong = [
        f"{name}   member 1: {_shape(first, name)}   member {number}: {_shape(other, name)}"
        for number, other in enumerate(others, 2)
        for name in dict.fromkeys([*first, *other])
        if _shape(first, name) != _shape(other, name)
    ]
    if wrong:
        raise MismatchedCheckpoints(
            f"{len(states)} models cannot be aligned: their tensors differ.\n{listing(wrong)}\n"
            "Models are aligned unit by unit: they must have one architecture and equal widths. "
            "For others, use an ensemble, fusion or distillation."
        )


def _shape(state: dict[str, Tensor], name: str) -> str:
    return str(list(state[name].shape)) if name in state else "missing"
