"""A run on disk: written whole or not at all, and gone on from to the same bits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import InvalidParameter
from alloykit.numerics import is_number
from alloykit.training.hardware import Hardware
from alloykit.training.history import History
from alloykit.training.run import Run
from alloykit.training.snapshot_file import load, made_folder, prefixed, save, sweep, under
from alloykit.training.snapshot_identity import as_json, check_same
from alloykit.training.weights import changing, frozen, put_back

FILE = "training.safetensors"
NUMBERS = ("step", "summed", "scored")
MODEL, KEPT, OPTIMIZER = "model/", "kept/", "optimizer/"


class Snapshots:
    """Where a run is written to, and read from when it starts again.

    Args:
        folder: The folder, made where it is missing; None keeps nothing.
        every: Seconds between two snapshots within an epoch, at least 0.
        settings: JSON values that a run must share with the snapshot that it goes on from.
        model: The model itself, without wrappers.
        machine: Its optimizer and scaler; only its process 0 writes.

    Raises:
        InvalidParameter: Settings that are no JSON values, or ``every`` below 0.
        CheckpointError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: Path | None,
        every: float,
        settings: Mapping[str, Any],
        model: nn.Module,
        machine: Hardware,
    ) -> None:
        if not is_number(every) or not every >= 0:
            raise InvalidParameter(f"'every' must be at least 0 seconds. Got {every!r}.")
        self._path = None if folder is None else Path(folder).expanduser() / FILE
        self._every, self._model, self._machine = every, model, machine
        self._last = time.monotonic()
        if self._path is None:
            return
        self._settings = {**as_json(settings), **_of_model(model)}
        made_folder(self._path.parent)
        if machine.process == 0:
            sweep(self._path.parent)

    def due(self) -> bool:
        """Whether it is time to write."""
        return self._path is not None and time.monotonic() - self._last >= self._every

    def write(self, run: Run, *, seconds: float = 0.0) -> None:
        """Write the run as it is now, ``seconds`` into its epoch."""
        if self._path is None or self._machine.process != 0:
            return
        tensors = prefixed(MODEL, changing(self._model)) | prefixed(KEPT, run.kept)
        for index, state in self._machine.optimizer.state_dict()["state"].items():
            tensors |= prefixed(f"{OPTIMIZER}{index}/", state)
        scaler = self._machine.scaler
        record = {
            "settings": self._settings,
            "history": run.history.to_json(),
            "scaler": None if scaler is None else scaler.state_dict(),
            **{name: getattr(run, name) for name in NUMBERS},
            "seconds": seconds,
        }
        save(self._path, record, tensors)
        self._last = time.monotonic()

    def resume(self, run: Run) -> Run:
        """The run that the folder holds, put into model and optimizer; ``run`` where it is empty.

        Raises:
            OutputExists: It is of a run with another identity or other settings.
            CheckpointError: It is damaged.
        """
        if self._path is None or not self._path.exists():
            return run
        record, tensors = load(self._path)
        check_same(self._path, record["settings"], self._settings)
        put_back(changing(self._model), under(tensors, MODEL))
        put_back(run.kept, under(tensors, KEPT))
        self._restore_optimizer(under(tensors, OPTIMIZER))
        if self._machine.scaler is not None:
            self._machine.scaler.load_state_dict(record["scaler"])
        numbers = {name: record[name] for name in (*NUMBERS, "seconds")}
        return replace(run, history=History.of(record["history"]), **numbers)

    def _restore_optimizer(self, saved: Mapping[str, Tensor]) -> None:
        optimizer = self._machine.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = _laid_out(tensor, parameters[int(index)])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _of_model(model: nn.Module) -> dict[str, Any]:
    """What a snapshot's model must look like: the tensors that change, and those that do not."""
    kinds = {n: f"{t.dtype} {list(t.shape)}" for n, t in changing(model).items()}
    fixed = frozen(model)
    digest = content_digest(MemoryCheckpoint(fixed, "frozen")) if fixed else ""
    return {"model": kinds, "frozen parameters": digest}


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """With the strides of the parameter, so that the same kernels run as before."""
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
