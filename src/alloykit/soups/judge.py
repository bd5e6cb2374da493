"""What choosing among averages asks of validation data: a score, and a loss with gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from alloykit.checkpoints.loading import load_state
from alloykit.data.batches import forward
from alloykit.data.examples import Examples
from alloykit.evaluation.batch_norm import has_batch_norm, update_batch_norm
from alloykit.evaluation.metrics import Metric
from alloykit.evaluation.predicting import detect_kind, log_probabilities, predict
from alloykit.training.losses import task_loss
from alloykit.types import Task


class Judge:
    """Scores state dicts of one architecture on validation data.

    Args:
        module: A module of the architecture. It is copied; the original is never changed.
        validation: The examples to score on.
        metric: What to measure.
        task: How outputs and targets are to be read.
        batch_norm: Examples to re-estimate BatchNorm statistics on before each scoring; None
            leaves the averaged statistics as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        validation: Examples,
        metric: Metric,
        task: Task,
        *,
        batch_norm: Examples | None = None,
    ) -> None:
        self.module = copy.deepcopy(module).eval()
        self.validation = validation
        self.metric = metric
        self.task: Task = task
        self.batch_norm = batch_norm if has_batch_norm(module) else None

    def loaded(self, state: Mapping[str, Tensor], *, reestimate: bool = True) -> nn.Module:
        """The judge's module with this state in it, BatchNorm re-estimated where data was given."""
        load_state(self.module, state)
        if reestimate and self.batch_norm is not None:
            update_batch_norm(self.module, self.batch_norm.batches())
        return self.module

    def outputs(self, state: Mapping[str, Tensor], *, reestimate: bool = True) -> Tensor:
        """Pooled-form outputs of that state on the validation examples."""
        module = self.loaded(state, reestimate=reestimate)
        return scored_form(predict(module, self.validation), self.task)

    def value(self, state: Mapping[str, Tensor], *, reestimate: bool = True) -> float:
        """The metric's value, in its own direction."""
        outputs = self.outputs(state, reestimate=reestimate)
        return self.metric.value(outputs, self.validation.targets)

    def score(self, state: Mapping[str, Tensor]) -> float:
        """The metric's value, turned so that higher is better."""
        value = self.value(state)
        return value if self.metric.higher_is_better else -value

    def losses(self, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Mean loss of each validation batch, with gradients to ``state``.

        BatchNorm layers use the batch's own statistics where re-estimation was asked for, because
        averaged running statistics belong to none of the averages.
        """
        self.module.eval()
        buffers = {name for name, _ in self.module.named_buffers()}
        if self.batch_norm is not None:
            for layer in self.module.modules():
                layer.train(isinstance(layer, nn.modules.batchnorm._BatchNorm))
        for inputs, targets in self.validation.batches():
            # BatchNorm writes into its buffers: it gets copies, which need no gradient either.
            mixed = {n: t.detach().clone() if n in buffers else t for n, t in state.items()}
            given = forward(_WithState(self.module, mixed), inputs)
            outputs = as_logits(getattr(given, "logits", given), self.task)
            yield task_loss(outputs, targets, self.task)
        self.module.eval()


class _WithState(nn.Module):
    """A module that computes with other tensors than its own."""

    def __init__(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._call = lambda args, kwargs: functional_call(module, dict(state), args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(args, kwargs)


def as_logits(outputs: Tensor, task: Task) -> Tensor:
    """Outputs that cross-entropy can take: the logarithm where they are probabilities."""
    if detect_kind(outputs.detach().float(), task) != "probabilities":
        return outputs
    return outputs.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def scored_form(outputs: Tensor, task: Task) -> Tensor:
    """What metrics score: log-probabilities, or values for regression."""
    return log_probabilities(outputs, detect_kind(outputs, task))
