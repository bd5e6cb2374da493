"""Gaussian noise that depends on (seed, round, name of the tensor) alone, or on nothing at all."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alloykit.federation.contract import Given, Step

COUNT = "\0count"
"""Stands for a tensor's name where the noise is that of a count; no tensor has such a name."""


def noise_step(deviation: Callable[[Given], float], seed: int | None) -> Step:
    """A step that adds noise to every averaged tensor, statistics of BatchNorm included.

    They are made from the clients' data like everything else.

    Args:
        deviation: ``given -> standard deviation``; where it is 0 the tensor stays as it is.
        seed: As in ``gaussian``.
    """

    def noisy(given: Given) -> Tensor:
        return with_noise(given.combined, deviation(given), seed, given.round, given.name)

    return Step(change=lambda given: (noisy(given), {}), buffers=noisy)


def with_noise(
    tensor: Tensor, deviation: float, seed: int | None, round_: int, name: str
) -> Tensor:
    """The tensor with noise added; itself where the deviation is 0.

    Shapes:
        tensor [*shape] -> [*shape]
    """
    if not deviation:
        return tensor
    source = _generator(seed, round_, name)
    noise = _drawn(source, tensor)
    if tensor.is_complex():
        noise = torch.complex(noise, _drawn(source, tensor))
    return torch.add(tensor, noise.to(tensor.device), alpha=deviation)


def _drawn(source: np.random.Generator, like: Tensor) -> Tensor:
    wide = like.dtype in (torch.float64, torch.complex128)
    drawn = source.standard_normal(tuple(like.shape), dtype=np.float64 if wide else np.float32)
    return torch.from_numpy(np.asarray(drawn))


def gaussian(deviation: float, seed: int | None, round_: int, name: str) -> float:
    """One number from a normal distribution of mean 0.

    Args:
        deviation: Its standard deviation.
        seed: With the round and the name it decides the number; None draws from the operating
            system's random numbers, anew each time.
        round_: Number of the round.
        name: Of what the noise is for.

    Example:
        >>> gaussian(2.0, 7, 1, "w") == 2.0 * gaussian(1.0, 7, 1, "w")
        True
    """
    return deviation * float(_generator(seed, round_, name).standard_normal())


def _generator(seed: int | None, round_: int, name: str) -> np.random.Generator:
    if seed is None:
        return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
    text = f"{seed}\0{round_}\0{name}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
