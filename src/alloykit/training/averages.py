"""Running averages of a model's weights, one line in any training loop.

ema = ExponentialMovingAverage(model, decay=0.999)
for inputs, targets in loader:
    ...
    optimizer.step()
    ema.update()
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alloykit.checkpoints.wording import counted
from alloykit.errors import CheckpointError, InvalidParameter, MissingInput, listing
from alloykit.names import wrapper_prefix
from alloykit.numerics import compute_dtype, is_averaged, weighted_mean

Buffers = Literal["copy", "average"]


class RunningAverage(ABC):
    """What the averages share: reading the model, handing the average over, save and restore.

    The average is kept in float32 (float64 where the model is), so that small steps are not lost
    in half-precision models; it is rounded once, when it is handed over. Parameters that hold
    integers (quantised weights) are not averaged but the model's present ones. Names go without
    the prefix of a wrapper, so that an average of a wrapped model fits the model inside.
    """

    def __init__(self, model: nn.Module, *, buffers: Buffers = "copy") -> None:
        if buffers not in ("copy", "average"):
            raise InvalidParameter(f"'buffers' must be 'copy' or 'average'. Got {buffers!r}.")
        self.model = model
        self.buffers: Buffers = buffers
        self.updates = 0

    def update(self) -> None:
        """Take the model's present weights into the average. Call it after each optimizer step."""
        with torch.no_grad():
            self._take({name: tensor.detach() for name, tensor in self._averaged_tensors()})
        self.updates += 1

    @abstractmethod
    def _take(self, current: Mapping[str, Tensor]) -> None:
        """Take one more set of tensors into the average."""

    @abstractmethod
    def _average(self) -> Mapping[str, Tensor]:
        """The averaged tensors by name, in their compute dtypes."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What ``state_dict`` holds besides the number of updates: tensors and numbers."""

    @abstractmethod
    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take back what ``_state`` gave."""

    def _averaged_tensors(self) -> Iterator[tuple[str, Tensor]]:
        average_buffers = self.buffers == "average"
        for name, tensor in _named_tensors(self.model).items():
            is_parameter = isinstance(tensor, nn.Parameter)
            if is_averaged(tensor.dtype) and (is_parameter or average_buffers):
                yield name, tensor

    def copy_to(self, model: nn.Module) -> None:
        """Write the average into ``model``, a module of the same architecture.

        Buffers outside the average are those of the trained model, as it is now. BatchNorm
        statistics belong to the weights they were measured with: re-estimate them afterwards with
        ``alloykit.update_batch_norm``.

        Raises:
            MissingInput: There was no update yet.
            CheckpointError: ``model`` has other tensors than the trained model; all are listed.
        """
        if self.updates == 0:
            raise MissingInput("The average is empty: call update() at least once before.")
        source, target = _named_tensors(self.model), _named_tensors(model)
        if wrong := _differences(_shapes(source), _shapes(target), "trained", "given"):
            raise CheckpointError(
                f"The average does not fit the model given: {counted(len(wrong), 'difference')}.\n"
                f"{listing(wrong)}"
            )
        averaged = self._average()
        with torch.no_grad():
            for name, tensor in target.items():
                tensor.copy_(averaged.get(name, source[name]))

    def module(self) -> nn.Module:
        """A copy of the model that holds the average."""
        averaged = copy.deepcopy(self.model)
        self.copy_to(averaged)
        return averaged

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model itself with the average in it, its own weights back afterwards.

        Use it to validate in the middle of training.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        own = [tensor.detach().clone() for tensor in tensors]
        try:
            self.copy_to(self.model)
            yield self.model
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, own, strict=True):
                    tensor.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs: tensors, numbers and lists, fit for ``torch.save``."""
        own = {"kind": type(self).__name__, "updates": self.updates, "buffers": self.buffers}
        return {**own, **self._state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave, bit for bit, settings included.

        The average moves to where the model's tensors are.

        Raises:
            CheckpointError: The state is of another sort of average, or of another model.
        """
        kind = type(self).__name__
        if state.get("kind") != kind:
            raise CheckpointError(
                f"This state is of a {state.get('kind')!r} and cannot be loaded into a {kind}."
            )
        if state["buffers"] != self.buffers:
            raise CheckpointError(
                f"This state was made with buffers={state['buffers']!r}, and this average was made "
                f"with buffers={self.buffers!r}. Make it with the same."
            )
        self._check_shapes(state)
        self.updates = int(state["updates"])
        self._restore(state)

    def _check_shapes(self, state: Mapping[str, Any]) -> None:
        expected = _shapes(dict(self._averaged_tensors()))
        wrong: dict[str, None] = {}
        for tensors in filter(None, state["averages"]):
            wrong |= dict.fromkeys(_differences(expected, _shapes(tensors), "model", "state"))
        if wrong:
            raise CheckpointError(
                f"This state belongs to another model: {counted(len(wrong), 'difference')}.\n"
                f"{listing(wrong)}"
            )

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of restored tensors, on the devices of the model's."""
        devices = {name: tensor.device for name, tensor in self._averaged_tensors()}
        return {n: t.detach().to(devices[n], copy=True) for n, t in tensors.items()}


class ExponentialMovingAverage(RunningAverage):
    """An exponential moving average (EMA) of a model's weights while it trains.

    first update: average = weights; after it: average ← average + (1 − d)·(weights − average)

    with d = decay, or with warm-up d_t = min(decay, 1 − (1 + t/γ)^−power) at update t. Use it in
    nearly every training run: the average is usually better than the last step, at the price of
    one copy of the weights.

    Args:
        model: The module in training. It is read, never changed by ``update``.
        decay: Factor on the old average, in [0, 1).
        warmup: Start with a small decay, so that a short run is not dominated by its first steps.
        gamma: Time scale γ of the warm-up in updates, positive.
        power: Exponent of the warm-up, positive; 2/3 suits runs of up to a million steps, 3/4
            shorter ones.
        buffers: "copy" keeps buffers at the model's present values, "average" averages the
            floating ones too. Integer buffers are always the model's present values.

    Raises:
        InvalidParameter: A number outside its range.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> ema = ExponentialMovingAverage(model, decay=0.9)
        >>> ema.update()
        >>> ema.updates
        1

    References:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992. Equal to
        ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)`` bit for bit
        on float32 models without warm-up; differs in float16 and bfloat16, where ours keeps the
        average in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        gamma: float = 1.0,
        power: float = 2 / 3,
        buffers: Buffers = "copy",
    ) -> None:
        super().__init__(model, buffers=buffers)
        if not 0.0 <= decay < 1.0:
            raise InvalidParameter(
                f"The 'decay' of an EMA must be a number in [0, 1). Got {decay}."
            )
        if not (gamma > 0.0 and power > 0.0):
            raise InvalidParameter(f"'gamma' and 'power' must be positive. Got {gamma}, {power}.")
        self.decay, self.warmup, self.gamma, self.power = decay, warmup, gamma, power
        self._tensors: dict[str, Tensor] = {}

    def decay_at(self, update: int) -> float:
        """The decay that update number ``update`` (from 0) uses."""
        if not self.warmup:
            return self.decay
        ramp: float = 1.0 - (1.0 + update / self.gamma) ** -self.power
        return min(self.decay, ramp)

    def _take(self, current: Mapping[str, Tensor]) -> None:
        _lerp(self._tensors, current, 1 - self.decay_at(self.updates))

    def _average(self) -> Mapping[str, Tensor]:
        return self._tensors

    def _state(self) -> dict[str, Any]:
        settings = {k: getattr(self, k) for k in ("decay", "warmup", "gamma", "power")}
        return {**settings, "averages": [_clones(self._tensors)]}

    def _restore(self, state: Mapping[str, Any]) -> None:
        for setting in ("decay", "warmup", "gamma", "power"):
            setattr(self, setting, state[setting])
        self._tensors = self._placed(state["averages"][0])


class StochasticWeightAverage(RunningAverage):
    """The plain running mean of a model's weights (SWA): every update weighs the same.

    average ← average + (weights − average) / (n + 1) at update n (from 0)

    Use it over the last part of training with a constant or cyclic learning rate, once an epoch.
    Re-estimate BatchNorm statistics afterwards.

    Args:
        model: The module in training. It is read, never changed by ``update``.
        buffers: As in ``ExponentialMovingAverage``.

    References:
        Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
        arXiv:1803.05407, algorithm 1. Equal to ``torch.optim.swa_utils.AveragedModel`` with
        ``get_swa_multi_avg_fn()`` bit for bit on float32 models.
    """

    def __init__(self, model: nn.Module, *, buffers: Buffers = "copy") -> None:
        super().__init__(model, buffers=buffers)
        self._tensors: dict[str, Tensor] = {}

    def _take(self, current: Mapping[str, Tensor]) -> None:
        _lerp(self._tensors, current, 1 / (self.updates + 1))

    def _average(self) -> Mapping[str, Tensor]:
        return self._tensors

    def _state(self) -> dict[str, Any]:
        return {"averages": [_clones(self._tensors)]}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._tensors = self._placed(state["averages"][0])


class LastKAverage(RunningAverage):
    """The mean of the last k snapshots of a model's weights (LAWA).

    average = (1/k) Σ of the k most recent updates

    Use it with one update an epoch, or every few hundred steps: old weights leave the average
    completely, which neither EMA nor SWA does. Memory holds k copies, on the CPU.

    Args:
        model: The module in training. It is read, never changed by ``update``.
        k: Snapshots to keep, at least 1.
        buffers: As in ``ExponentialMovingAverage``.

    Raises:
        InvalidParameter: k below 1, or not a whole number.

    References:
        Kaddour, Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest
        Weight Averaging, 2022, arXiv:2209.14981, section 2.
    """

    def __init__(self, model: nn.Module, k: int = 5, *, buffers: Buffers = "copy") -> None:
        super().__init__(model, buffers=buffers)
        if k < 1 or k != int(k):
            raise InvalidParameter(f"'k' must be a whole number of at least 1. Got {k}.")
        self.k = int(k)
        self._snapshots: deque[dict[str, Tensor]] = deque(maxlen=self.k)

    def _take(self, current: Mapping[str, Tensor]) -> None:
        self._snapshots.append({name: t.to("cpu", copy=True) for name, t in current.items()})

    def _average(self) -> Mapping[str, Tensor]:
        count = len(self._snapshots)
        return {
            name: weighted_mean(
                [snapshot[name].to(compute_dtype(first.dtype)) for snapshot in self._snapshots],
                (1.0 / count,) * count,
            )
            for name, first in self._snapshots[0].items()
        }

    def _state(self) -> dict[str, Any]:
        return {"k": self.k, "averages": [_clones(snapshot) for snapshot in self._snapshots]}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.k = int(state["k"])
        self._snapshots = deque((_clones(s) for s in state["averages"]), maxlen=self.k)


def _lerp(averages: dict[str, Tensor], current: Mapping[str, Tensor], weight: float) -> None:
    """Move each average towards the current tensor by ``weight``; the first time, copy it."""
    if not averages:
        averages.update({n: t.to(compute_dtype(t.dtype), copy=True) for n, t in current.items()})
        return
    if averages.keys() != current.keys():
        raise CheckpointError(
            "The model has other tensors than when its average began: "
            f"{', '.join(sorted(averages.keys() ^ current.keys()))}. Begin a new average."
        )
    kept = [averages[name] for name in current]
    new = [tensor.to(averages[name]) for name, tensor in current.items()]
    for dtype in dict.fromkeys(tensor.dtype for tensor in kept):
        chosen = [i for i, tensor in enumerate(kept) if tensor.dtype == dtype]
        torch._foreach_lerp_([kept[i] for i in chosen], [new[i] for i in chosen], weight)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once, under their names without a wrapper's prefix."""
    every = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    prefix = wrapper_prefix(every)
    return {name.removeprefix(prefix): tensor for name, tensor in every.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _differences(
    one: Mapping[str, list[int]], other: Mapping[str, list[int]], title: str, second: str
) -> list[str]:
    """A line for each name that is missing in one of the two, or has another shape there."""
    return [
        f"{name}   {title}: {one.get(name, 'missing')}   {second}: {other.get(name, 'missing')}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
