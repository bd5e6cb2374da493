"""The one training loop: plain, explicit, the same bits for the same seed on one device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.training.hardware import hardware
from alloykit.training.history import Epoch, History, told
from alloykit.training.order import derived_seed, epoch_order, steps_of
from alloykit.training.rows import Rows
from alloykit.training.run import Run
from alloykit.training.schedule import factor
from alloykit.training.scoring import Validation as Validation
from alloykit.training.scoring import begun
from alloykit.training.seeding import borrowed_generators, devices_of
from alloykit.training.settings import Training, check_patience
from alloykit.training.snapshot import Snapshots
from alloykit.training.stepping import Loss, add_gradients
from alloykit.training.weights import changing, copies, has_nan, put_back


def train(
    model: nn.Module,
    data: Rows,
    loss: Loss,
    training: Training = Training(),  # noqa: B008
    *,
    validation: Validation | None = None,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    snapshot: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    every: float = 60.0,
    accelerator: Any = None,
) -> History:
    """Train ``model`` in place; it ends in eval mode with the best weights.

    Use it for anything that has a loss: students, fusion heads, members from scratch.

    Args:
        model: Parameters without requires_grad stay as they are. Modules that must not leave eval
            mode override ``train``. With several processes BatchNorm sees each one's share alone,
            as DistributedDataParallel has it (torch offers SyncBatchNorm).
        data: Where it is; each batch goes to the model's device and dtype.
        loss: ``(model, part) -> []``, the mean loss of a batch.
        training: How. Order, dropout and augmentation depend on its seed; torch's random state is
            the caller's again afterwards. The same seed gives the same bits on one device; on CUDA
            torch.use_deterministic_algorithms(True) has to hold some of its kernels to that.
        validation: Chooses the epoch whose weights are kept; None keeps the last one's.
        after_step: Called after each step ("ema.update"). What it gathers is in no snapshot.
        after_epoch: Called after each epoch.
        progress: Called after each step with a text, the steps done and the steps in all.
        snapshot: Folder that the run is written to, and gone on from: to the same weights, bit
            for bit, as without an interruption. A finished run is returned at once.
        identity: JSON values that say what is trained on what; a snapshot of another is refused.
        every: Seconds between snapshots, at least 0 (after each step); one follows each epoch.
        accelerator: An ``accelerate.Accelerator``: its devices, processes and mixed precision.

    Raises:
        DataError: The loss became NaN or infinite; the model holds the best weights so far.
        OutputExists: The snapshot is of other settings, data or model; all differences are listed.
        CheckpointError: The snapshot is damaged, or cannot be written.
        InvalidParameter: Nothing to train, or settings that contradict each other.

    Example:
        >>> rows = Rows(torch.eye(4), torch.tensor([0, 1, 0, 1]))
        >>> loss = lambda model, part: nn.functional.cross_entropy(model(part.inputs), part.targets)
        >>> train(nn.Linear(4, 2), rows, loss, Training(epochs=3)).steps
        3
    """
    check_patience(training, validation is not None)
    machine = hardware(model, training, accelerator)
    weights = changing(model)
    run = Run(training, begun(validation), copies(weights))
    settings = {"training": training.to_json(), "examples": len(data), "metric": run.history.metric}
    with closing(machine), borrowed_generators(devices_of(model)) as seed:
        disk = Snapshots(snapshot, every, {"identity": identity or {}, **settings}, model, machine)
        run = disk.resume(run)
        while not run.finished:
            epoch, began = len(run.history.epochs) + 1, time.monotonic() - run.seconds
            order = epoch_order(training.seed, epoch, len(data))
            steps = steps_of(order, training.batch_size, training.accumulate)
            total = training.epochs * len(steps)
            machine.model.train()
            for number in range(run.step - (epoch - 1) * len(steps), len(steps)):
                seed(derived_seed(training.seed, "step", run.step, machine.process))
                mean, scored = add_gradients(machine, model, data, steps[number], loss)
                if not math.isfinite(mean):
                    raise run.diverged(weights, f"The loss became {mean}", number + 1)
                rate = training.learning_rate * factor(training, run.step, total)
                machine.step(rate, training.clip_norm)
                run.count(mean, scored)
                if after_step is not None:
                    after_step()
                if progress is not None:
                    progress(told(epoch, training.epochs, run.mean, run.history), run.step, total)
                if disk.due() and number + 1 < len(steps):
                    disk.write(run, seconds=time.monotonic() - began)
            if has_nan(weights):
                raise run.diverged(weights, "Parameters became nan", len(steps))
            model.eval()
            with torch.no_grad():
                score = machine.agreed(float(validation.measure(model))) if validation else None
            done = Epoch(epoch, run.mean, score, rate, time.monotonic() - began)
            run.finish(done, weights)
            disk.write(run)
            if after_epoch is not None:
                after_epoch(done)
        put_back(weights, run.kept)
    return run.history
