"""What choosing among averages asks of validation data: a score, and a loss with gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from alloykit.checkpoints.loading import load_state
from alloykit.data.batches import forward, placed
from alloykit.data.examples import Examples
from alloykit.data.outputs import logits_of
from alloykit.evaluation.batch_norm import has_batch_norm, update_batch_norm
from alloykit.evaluation.metrics import Metric
from alloykit.evaluation.predicting import (
    detect_kind,
    log_probabilities,
    predict,
    unwrapped,
)
from alloykit.names import wrapper_prefix
from alloykit.numerics import compute_dtype, is_averaged
from alloykit.training.losses import task_loss
from alloykit.types import Kind, Task


class Judge:
    """Scores state dicts of one architecture on validation data.

    Args:
        module: A module of the architecture. It is copied; the original is never changed.
        validation: The examples to score on.
        metric: What to measure.
        task: How outputs and targets are to be read.
        batch_norm: Examples to re-estimate BatchNorm statistics on before each scoring; None
            leaves the averaged statistics as they are.
        kind: What the members return; by default found out on the first state that is scored.
    """

    def __init__(
        self,
        module: nn.Module,
        validation: Examples,
        metric: Metric,
        task: Task,
        *,
        batch_norm: Examples | None = None,
        kind: Kind | None = None,
    ) -> None:
        self.module = copy.deepcopy(module).eval()
        self.validation = validation
        self.metric = metric
        self.task: Task = task
        self.batch_norm = batch_norm if has_batch_norm(module) else None
        self._kind = kind

    def loaded(self, state: Mapping[str, Tensor], *, reestimate: bool = True) -> nn.Module:
        """The judge's module with this state in it, BatchNorm re-estimated where data was given."""
        load_state(self.module, state)
        if reestimate and self.batch_norm is not None:
            update_batch_norm(self.module, self.batch_norm.batches())
        return self.module

    def outputs(self, state: Mapping[str, Tensor], *, reestimate: bool = True) -> Tensor:
        """Pooled-form outputs of that state on the validation examples."""
        given = predict(self.loaded(state, reestimate=reestimate), self.validation)
        if self._kind is None:
            # Once for all states: a single logit of one of them may look like a probability.
            self._kind = detect_kind(given, self.task)
        return log_probabilities(given, self._kind)

    def value(self, state: Mapping[str, Tensor], *, reestimate: bool = True) -> float:
        """The metric's value, in its own direction."""
        outputs = self.outputs(state, reestimate=reestimate)
        return self.metric.value(outputs, self.validation.targets)

    def score(self, state: Mapping[str, Tensor], *, reestimate: bool = True) -> float:
        """The metric's value, turned so that higher is better."""
        value = self.value(state, reestimate=reestimate)
        return value if self.metric.higher_is_better else -value

    def losses(self, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Mean loss of each validation batch, with gradients to ``state``.

        BatchNorm layers use the batch's own statistics where re-estimation was asked for, because
        averaged running statistics belong to none of the averages; batches of one example, which
        have none, are left out then.

        Args:
            state: Names without a wrapper's prefix -> tensors in their compute dtypes; looked up
                anew for every batch. Tied names may be left out.
        """
        module = unwrapped(copy.deepcopy(self.module)).eval()
        for tensor in (*module.parameters(), *module.buffers()):
            if is_averaged(tensor.dtype):
                tensor.data = tensor.data.to(compute_dtype(tensor.dtype))
        if self.batch_norm is not None:
            for layer in module.modules():
                layer.train(isinstance(layer, nn.modules.batchnorm._BatchNorm))
        for inputs, targets in self.validation.batches():
            if self.batch_norm is None or len(targets) > 1:
                called = _WithState(module, state)
                outputs = as_logits(logits_of(forward(called, placed(inputs, module))), self._kind)
                yield task_loss(outputs, targets.to(outputs.device), self.task)


class _WithState(nn.Module):
    """A module that computes with other tensors than its own, wherever those are."""

    _call: Callable[[Any, Any], Any]

    def __init__(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        prefix = wrapper_prefix([*parameters, *buffers])
        given = {}
        # Of tied names the module lists the first alone, and that one stands for all.
        for name in state:
            if prefix + name in parameters:
                given[prefix + name] = state[name].to(parameters[prefix + name].device)
            elif prefix + name in buffers:
                # BatchNorm writes into its buffers: it gets copies, which need no gradient either.
                tensor = state[name].detach().clone()
                given[prefix + name] = tensor.to(buffers[prefix + name].device)
        self._call = lambda args, kwargs: functional_call(module, given, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(args, kwargs)


def as_logits(outputs: Tensor, kind: Kind | None) -> Tensor:
    """Outputs that the task's loss can take: logits where they are probabilities."""
    if kind != "probabilities":
        return outputs
    logs = outputs.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    if outputs.dim() == 1 or outputs.shape[1:] == (1,):
        return logs - (1 - outputs.float()).clamp_min(torch.finfo(torch.float32).tiny).log()
    return logs
