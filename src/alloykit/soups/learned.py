"""The learned soup: weights on the simplex by gradient on validation data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alloykit.checkpoints.loading import state_dict
from alloykit.errors import InvalidParameter
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.numerics import compute_dtype, is_averaged
from alloykit.soups.contract import Choice, Chooser, soup
from alloykit.soups.judge import Judge
from alloykit.types import Checkpoint

LOGIT_RANGE = 30.0


@soup(paper="Wortsman et al., Model soups, 2022, arXiv:2203.05482, appendix I.")
def learned(epochs: int = 5, learning_rate: float = 0.1) -> Chooser:
    """Learn one weight per member by gradient descent on the validation loss.

    minimise over a: loss(model(x; Σ softmax(a)ᵢ · memberᵢ), y), on the simplex by construction

    Use it when members differ in quality and validation data is plentiful. The weights with the
    best validation score seen so far are returned, the uniform ones included, so that the result
    is never worse there than the plain average. Learning ends early where the loss is not finite.

    Args:
        epochs: Passes over the validation data, at least 1.
        learning_rate: Step of Adam on the logits a, positive.

    Needs:
        validation. Memory for all members at once.

    Raises:
        InvalidParameter: A number outside its range.

    References:
        Wortsman et al., Model soups, 2022, arXiv:2203.05482, appendix I. Differs from the
        authors' code, which also learns a temperature; one does not change the predicted class.
    """
    if epochs < 1 or not learning_rate > 0.0:
        raise InvalidParameter(
            "learned takes 'epochs' of at least 1 and a positive 'learning_rate'. "
            f"Got {epochs} and {learning_rate}."
        )

    def choose(
        members: Sequence[Checkpoint], judge: Judge, base: Checkpoint | None = None
    ) -> Choice:
        stacked, fixed = _stacked(members)
        logits = torch.zeros(len(members), requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=learning_rate)
        trials = [_trial(members, logits, judge)]
        for _ in range(epochs):
            for loss in judge.losses(_Mixture(stacked, fixed, logits)):
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    logits.clamp_(-LOGIT_RANGE, LOGIT_RANGE)
            if not bool(torch.isfinite(logits).all()):
                break
            trials.append(_trial(members, logits, judge))
        sign = 1.0 if judge.metric.higher_is_better else -1.0
        best = max(trials, key=lambda trial: sign * trial[judge.metric.name])
        return Choice("linear", {}, tuple(best["weights"]), best[judge.metric.name], tuple(trials))

    return choose


class _Mixture(Mapping[str, Tensor]):
    """A state dict whose averaged tensors are mixed from the present logits when iterated."""

    def __init__(
        self, stacked: Mapping[str, Tensor], fixed: Mapping[str, Tensor], logits: Tensor
    ) -> None:
        self._stacked, self._fixed, self._logits = stacked, fixed, logits

    def __getitem__(self, name: str) -> Tensor:
        if name in self._fixed:
            return self._fixed[name]
        tensor = self._stacked[name]
        weights = torch.softmax(self._logits, dim=0).to(tensor.dtype)
        mixed: Tensor = torch.tensordot(weights, tensor, dims=1)
        return mixed

    def __iter__(self) -> Iterator[str]:
        yield from (*self._stacked, *self._fixed)

    def __len__(self) -> int:
        return len(self._stacked) + len(self._fixed)


def _stacked(members: Sequence[Checkpoint]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The averaged tensors of all members in one [member, *shape] each, and the others."""
    states = [state_dict(member) for member in members]
    stacked = {
        name: torch.stack([state[name].to(compute_dtype(tensor.dtype)) for state in states])
        for name, tensor in states[0].items()
        if is_averaged(tensor.dtype)
    }
    return stacked, {n: t for n, t in states[0].items() if n not in stacked}


def _trial(members: Sequence[Checkpoint], logits: Tensor, judge: Judge) -> dict[str, Any]:
    weights = torch.softmax(logits.detach().double(), dim=0).tolist()
    merged = merge_in_memory(plan_merge(members, weights=weights), members)
    value = judge.value(merged, reestimate=len(members) > 1)
    return {"weights": weights, judge.metric.name: value}
