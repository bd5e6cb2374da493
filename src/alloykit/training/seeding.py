"""Torch's random generators, borrowed: seeded as training needs them, the caller's state back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def borrowed_generators(devices: Iterable[torch.device]) -> Iterator[Callable[[int], None]]:
    """A function that seeds the generators of the CPU and of these devices.

    Their states are as they were when the block ends, also by an exception. Devices that are not
    named are not touched, and CUDA is not started for a model on the CPU.

    Example:
        >>> before = torch.get_rng_state()
        >>> with borrowed_generators([]) as seed:
        ...     seed(1)
        ...     number = torch.rand(1)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    used = [device for device in dict.fromkeys(devices) if device.type not in ("cpu", "meta")]
    host, states = torch.default_generator.get_state(), [_state(device) for device in used]

    def seed(number: int) -> None:
        torch.default_generator.manual_seed(number)
        for device in used:
            _seed(device, number)

    try:
        yield seed
    finally:
        torch.default_generator.set_state(host)
        for device, state in zip(used, states, strict=True):
            _restore(device, state)


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that a model's tensors lie on."""
    return list(dict.fromkeys(t.device for t in [*model.parameters(), *model.buffers()]))


def _own(device: torch.device) -> torch.Generator | None:
    """The device's default generator, where its module shows it (CUDA, XPU)."""
    generators = getattr(torch.get_device_module(device), "default_generators", None)
    return generators[device.index or 0] if generators else None


def _state(device: torch.device) -> torch.Tensor:
    own = _own(device)
    return own.get_state() if own else torch.get_device_module(device).get_rng_state()


def _seed(device: torch.device, number: int) -> None:
    own = _own(device)
    if own:
        own.manual_seed(number)
    else:
        torch.get_device_module(device).manual_seed(number)


def _restore(device: torch.device, state: torch.Tensor) -> None:
    own = _own(device)
    if own:
        own.set_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state)
