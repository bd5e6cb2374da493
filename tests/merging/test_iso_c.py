from __future__ import annotations

from dataclasses import replace

import torch

from alloykit.merging.iso_c import iso_c
from matrix_samples import random_group, step, task_vectors


def test_it_flattens_the_spectrum_of_the_sum():
    for shape in ((9, 12), (12, 9)):
        group = random_group(*shape)
        u, s, vt = torch.linalg.svd(sum(task_vectors(group)), full_matrices=False)
        expected = s.mean() * u @ vt
        torch.testing.assert_close(step(iso_c(), group), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(step(iso_c(scale=2), group), 2 * expected, rtol=1e-5, atol=1e-6)


def test_directions_that_nobody_took_stay_at_zero():
    group = random_group(6, 8)
    direction = torch.randn(6, 1) @ torch.randn(1, 8)
    low = replace(group, tensors=(direction, 2 * direction, 3 * direction), base=torch.zeros(6, 8))
    expected = 6 * direction.double() / 6  # one of six singular values carries everything
    torch.testing.assert_close(step(iso_c(), low), expected, rtol=1e-5, atol=1e-6)


def test_a_single_row_is_the_plain_sum():
    group = random_group(1, 8)
    torch.testing.assert_close(step(iso_c(), group), sum(task_vectors(group)), rtol=1e-5, atol=1e-6)
