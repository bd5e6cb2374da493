"""Where a step runs: the model's own device, or the processes of accelerate. One interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alloykit.errors import InvalidParameter
from alloykit.training.settings import Training

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Hardware(Protocol):
    """What the loop needs of the place that it runs on.

    Attributes:
        model: What the loss calls: the module, or its wrapper.
        optimizer: AdamW or SGD over what requires a gradient.
        scaler: Scales the loss of float16, where there is one.
        process: Number of this process, from 0; ``processes`` in all.
    """

    model: nn.Module
    optimizer: Any
    scaler: Any
    process: int
    processes: int

    def computing(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a batch; gradients are exchanged after a step's last."""

    def autocast(self) -> AbstractContextManager[None]:
        """Around the forward pass."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the loss."""

    def step(self, rate: float, clip_norm: float | None) -> None:
        """Clip the gradients, change the parameters by that step size, forget the gradients."""

    def mean(self, value: Tensor) -> float:
        """The mean of a number over all processes."""

    def agreed(self, value: float) -> float:
        """The main process's number, in every process."""

    def close(self) -> None:
        """Give the model back as it came."""


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient, each once.

    Raises:
        InvalidParameter: There is none.
    """
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        count = sum(1 for _ in model.parameters())
        raise InvalidParameter(
            f"There is nothing to train: none of the model's {count} parameters requires a "
            "gradient. Call requires_grad_() on the modules that should learn."
        )
    return found


def hardware(model: nn.Module, training: Training, accelerator: Any | None) -> Hardware:
    """The place that a run goes to: that of ``accelerator``, or the model's own device."""
    if accelerator is None:
        return OneDevice(model, training)
    return Processes(model, training, accelerator)


class OneDevice:
    """The model where it is, with torch's own autocast."""

    process, processes = 0, 1

    def __init__(self, model: nn.Module, training: Training) -> None:
        self.model = model
        self._trained = trained_parameters(model)
        self.optimizer: Any = _optimizer(self._trained, training)
        self.optimizer.zero_grad()
        self._kind = self._trained[0].device.type
        self._dtype = DTYPES[training.precision]
        self.scaler: Any = None
        if training.precision == "float16":
            _refuse_half(self._trained)
            self.scaler = torch.amp.GradScaler(self._kind)

    @contextmanager
    def computing(self, *, last: bool) -> Iterator[None]:
        """Nothing: there is nobody to exchange gradients with."""
        yield

    def autocast(self) -> AbstractContextManager[None]:
        """Torch's autocast, where the precision asks for it."""
        return nullcontext() if self._dtype is None else torch.autocast(self._kind, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the loss; of the scaled loss in float16."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()

    def step(self, rate: float, clip_norm: float | None) -> None:
        """Clip and step; a float16 step whose gradients overflowed is left out."""
        _set_rate(self.optimizer, rate)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()

    def mean(self, value: Tensor) -> float:
        """The number itself."""
        return float(value)

    def agreed(self, value: float) -> float:
        """The number itself."""
        return value

    def close(self) -> None:
        """Free the gradients; eval mode."""
        self.optimizer.zero_grad()
        self.model.eval()


class Processes:
    """The devices of an ``accelerate.Accelerator``, one process each; its mixed precision."""

    def __init__(self, model: nn.Module, training: Training, accelerator: Any) -> None:
        self._accelerator = accelerator
        _check_accelerator(accelerator, training)
        self._trained = trained_parameters(model.to(accelerator.device))
        self._own_forward = vars(model).get("forward")
        self.optimizer: Any
        own = _optimizer(self._trained, training)
        self.model, self.optimizer = accelerator.prepare(model, own)
        self.optimizer.zero_grad()
        self.scaler = accelerator.scaler
        self.process, self.processes = accelerator.process_index, accelerator.num_processes

    @contextmanager
    def computing(self, *, last: bool) -> Iterator[None]:
        """Gradients are exchanged in the backward pass of a step's last batch alone."""
        with nullcontext() if last else self._accelerator.no_sync(self.model):
            yield

    def autocast(self) -> AbstractContextManager[None]:
        """The accelerator's mixed precision."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the loss."""
        self._accelerator.backward(loss)

    def step(self, rate: float, clip_norm: float | None) -> None:
        """Clip and step."""
        _set_rate(self.optimizer, rate)
        if clip_norm is not None:
            self._accelerator.clip_grad_norm_(self._trained, clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def mean(self, value: Tensor) -> float:
        """The mean over all processes."""
        return float(self._accelerator.reduce(value.detach(), reduction="mean"))

    def agreed(self, value: float) -> float:
        """What the main process measured: buffers may differ between processes."""
        if self.processes == 1:
            return value
        own = torch.tensor([value], dtype=torch.float64, device=self._accelerator.device)
        return float(self._accelerator.gather(own)[0])

    def close(self) -> None:
        """Free the gradients, and take the wrappers off the model."""
        self.optimizer.zero_grad()
        model = self._accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).eval()
        # Mixed precision leaves a forward on the module itself, which hides that of its class.
        vars(model).pop("forward", None)
        if self._own_forward is not None:
            model.forward = self._own_forward


def _optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    # One kernel a step instead of a dozen: a quarter of the whole step on small networks.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    shared: dict[str, Any] = {
        "lr": training.learning_rate,
        "weight_decay": training.weight_decay,
        "fused": fused or None,
    }
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=training.momentum, **shared)
    return torch.optim.AdamW(parameters, **shared)


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _refuse_half(parameters: list[nn.Parameter]) -> None:
    if count := sum(parameter.dtype == torch.float16 for parameter in parameters):
        raise InvalidParameter(
            f"precision='float16' trains float32 parameters, and {count} are float16, in which "
            "steps are lost. Call model.float() first, or train with precision='bfloat16'."
        )


def _check_accelerator(accelerator: Any, training: Training) -> None:
    if accelerator.gradient_accumulation_steps != 1:
        raise InvalidParameter(
            f"The accelerator accumulates {accelerator.gradient_accumulation_steps} batches, and "
            "the loop accumulates itself. Make it with gradient_accumulation_steps=1, and ask for "
            "Training(accumulate=...)."
        )
    its = PRECISIONS.get(str(accelerator.mixed_precision), str(accelerator.mixed_precision))
    if training.precision not in ("float32", its):
        raise InvalidParameter(
            f"The accelerator computes in {its}, and precision={training.precision!r} asks for "
            "another. With an accelerator, its mixed_precision decides: leave precision out."
        )
