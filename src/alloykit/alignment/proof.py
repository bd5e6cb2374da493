"""Proof that permuted units compute the same: outputs before and after, compared."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alloykit.alignment.exporting import answers
from alloykit.alignment.groups import PermutationGroups
from alloykit.alignment.permuting import Permutation, apply, drawn, inverse
from alloykit.data.batches import Inputs, forward, placed
from alloykit.errors import AlignmentError, listing
from alloykit.evaluation.predicting import evaluating, running

TOLERANCE = 1e-5
"""Largest change of an output, relative to the largest output, that counts as rounding."""

SINGLE_TOLERANCE = 1e-4
"""The same for models that insist on float32: 50 layers leave 4e-6 there, and 1e-14 in float64."""

NOISE = 0.1
"""Relative size of the noise on the tensors of a model on which groups are proved."""

TINY = 1e-3
"""Largest value of tensors that would hide what they multiply (layer scales begin at 1e-6)."""


@dataclass(frozen=True)
class Trial:
    """A copy of a model, in the precision that it can be run in, and what it says on one batch.

    Attributes:
        model: In float64, or in float32 where the model insists on its own dtypes.
        inputs: The batch.
        before: The outputs.
        allowed: Largest relative change of them that counts as rounding.
    """

    model: nn.Module
    inputs: Inputs
    before: list[Tensor]
    allowed: float

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, *, noise: int | None = None) -> Trial:
        """A copy to try permutations on.

        Args:
            model: Stays as it is.
            inputs: A batch that it can be called with.
            noise: Seed of noise on the copy's tensors, so that a forgotten bias of zeros or
                untrained statistics cannot hide behind equal values; None for no noise.

        Raises:
            AlignmentError: Outputs of NaN.
            DataError: The model cannot be run on these inputs.
        """
        precise, allowed = _precise(model, inputs)
        if noise is not None:
            _shake(precise, noise)
        before = _outputs(precise, inputs)
        if any(bool(tensor.isnan().any()) for tensor in before):
            raise AlignmentError(
                f"{type(model).__name__} gives NaN on these inputs, and nothing can be compared "
                "with that. Look at its parameters, or give other inputs."
            )
        return cls(precise, inputs, before, allowed)

    def change(self, groups: PermutationGroups, permutation: Permutation) -> float:
        """How much a permutation changes the outputs: max |after - before| / max |before|."""
        permute(self.model, groups, permutation)
        try:
            return _difference(self.before, _outputs(self.model, self.inputs))
        finally:
            permute(self.model, groups, inverse(groups, permutation))

    def repeats(self) -> bool:
        """Whether the same model says the same twice."""
        return _difference(self.before, _outputs(self.model, self.inputs)) <= self.allowed


def prove(groups: PermutationGroups, trial: Trial, *, seed: int = 0) -> float:
    """Permute all groups at random and compare the outputs; return the largest relative change.

    Args:
        groups: To prove.
        trial: Of a model with noise.
        seed: Of the permutations.

    Raises:
        AlignmentError: The outputs change by more than 1e-5 (1e-4 in float32), or differ between
            two runs of the same model.
    """
    who, orders = type(trial.model).__name__, drawn(groups, seed)
    change = trial.change(groups, orders)
    if change <= trial.allowed:
        return change
    if not trial.repeats():
        raise AlignmentError(
            f"{who} gives other outputs each time it is run, so that nothing can be proved about "
            "it. Take randomness out of evaluation mode."
        )
    guilty = [
        f"{name}   changes the outputs by {alone:.1e}"
        for name, order in orders.items()
        if not (alone := trial.change(groups, {name: order})) <= trial.allowed
    ]
    raise AlignmentError(
        f"Permuting the units of {who} changes its outputs by {change:.1e} of the largest one, "
        f"and {trial.allowed:g} is allowed.\n{listing(guilty)}\n"
        "These permutation groups do not belong to this model: leave out what is named, or derive "
        "them with permutation_groups(model, inputs)."
    )


def check_same(
    groups: PermutationGroups, permutation: Permutation, trial: Trial, who: str
) -> float:
    """The relative change of a model's outputs under one permutation.

    Args:
        groups: Of the model's architecture.
        permutation: To try.
        trial: Of the model, without noise.
        who: What the error calls the model.

    Raises:
        AlignmentError: It is larger than 1e-5 (1e-4 in float32).
    """
    change = trial.change(groups, permutation)
    if not change <= trial.allowed:
        raise AlignmentError(
            f"{who} computes something else once its units are permuted: the outputs change by "
            f"{change:.1e} of the largest one, and {trial.allowed:g} is allowed. Its architecture "
            "is not that of the model that the groups come from."
        )
    return change


def permute(model: nn.Module, groups: PermutationGroups, permutation: Permutation) -> None:
    """Permute the units of a model in place."""
    state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    moved = apply(groups, permutation, state)
    with torch.no_grad():
        for name, tensor in state.items():
            if moved[name] is not tensor:
                tensor.copy_(moved[name])


def _precise(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, float]:
    """A copy that runs, and what counts as rounding in its precision."""
    try:
        double = copy.deepcopy(model).double()
        _outputs(double, inputs)
    except Exception:
        single = copy.deepcopy(model).float()
        with running(type(model).__name__, inputs):
            _outputs(single, inputs)
        return single, SINGLE_TOLERANCE
    return double, TOLERANCE


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with evaluating(model):
        return [tensor.clone() for tensor in answers(forward(model, placed(inputs, model)))]


def _difference(before: list[Tensor], after: list[Tensor]) -> float:
    return max((_relative(old, new) for old, new in zip(before, after, strict=True)), default=0.0)


def _relative(old: Tensor, new: Tensor) -> float:
    if old.shape != new.shape:
        return math.inf
    if not (old.is_floating_point() or old.is_complex()):
        return 0.0 if torch.equal(old, new) else math.inf
    if not old.numel() or torch.equal(old, new):
        return 0.0
    # Masked logits are infinite on both sides.
    apart = torch.where(old == new, 0.0, (old - new).abs())
    finite = torch.where(old.isfinite(), old.abs(), 0.0)
    change = float(apart.max() / finite.max())
    return math.inf if math.isnan(change) else change


def _shake(model: nn.Module, seed: int) -> None:
    """Noise on every real tensor that keeps signs, so that variances stay positive.

    Tensors of tiny values are enlarged: what they multiply would count for nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    done = set()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            real = isinstance(tensor, Tensor) and tensor.is_floating_point()
            if not real or not tensor.numel() or tensor.data_ptr() in done:
                continue
            done.add(tensor.data_ptr())
            noise = torch.randn(tensor.shape, generator=generator).to(tensor) * NOISE
            largest = float(tensor.abs().max())
            if 0.0 < largest < TINY:
                tensor.mul_(NOISE / largest)
            zero = tensor == 0.0
            tensor.mul_(noise.exp()).add_(noise.abs() * zero)
