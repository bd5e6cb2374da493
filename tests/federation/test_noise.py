"""Gaussian noise by (seed, round, name), or by nothing."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

from alloykit.federation.contract import Given
from alloykit.federation.noise import gaussian, noise_step, with_noise

ZEROS = torch.zeros(40, 500)


def test_it_is_normal_with_the_deviation_that_was_asked_for():
    drawn = with_noise(ZEROS, 3.0, 7, 1, "w")
    assert kstest(drawn.flatten().numpy() / 3.0, "norm").pvalue > 0.01
    assert drawn.std().item() == pytest.approx(3.0, rel=0.03)


def test_seed_round_and_name_decide_it_and_nothing_else():
    first = with_noise(ZEROS, 1.0, 7, 1, "w")
    assert torch.equal(first, with_noise(ZEROS, 1.0, 7, 1, "w"))
    for other in ((8, 1, "w"), (7, 2, "w"), (7, 1, "v")):
        drawn = with_noise(ZEROS, 1.0, *other)
        correlation = torch.corrcoef(torch.stack([first.flatten(), drawn.flatten()]))[0, 1]
        assert abs(correlation.item()) < 0.05
    assert gaussian(1.0, 7, 1, "w") == gaussian(1.0, 7, 1, "w") != gaussian(1.0, 7, 2, "w")


def test_without_a_seed_nothing_repeats():
    assert not torch.equal(
        with_noise(ZEROS, 1.0, None, 1, "w"), with_noise(ZEROS, 1.0, None, 1, "w")
    )
    assert gaussian(1.0, None, 1, "w") != gaussian(1.0, None, 1, "w")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_dtypes_and_shapes_are_kept(dtype, shape):
    tensor = torch.ones(shape, dtype=dtype)
    noisy = with_noise(tensor, 0.1, 3, 1, "w")
    assert (noisy.dtype, noisy.shape) == (dtype, tensor.shape)
    assert torch.equal(tensor, torch.ones(shape, dtype=dtype))
    if dtype.is_complex and tensor.numel() > 1:
        assert noisy.imag.abs().min() > 0


def test_without_deviation_the_tensor_stays_as_it_is():
    given = Given("w", ZEROS, ZEROS + 1.0, {}, 1, 2, {})
    step = noise_step(lambda given: 0.0, None)
    assert step.change(given)[0] is given.combined
    assert step.buffers(given) is given.combined
