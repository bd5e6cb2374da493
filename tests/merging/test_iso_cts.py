from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.merging.iso_c import iso_c
from alloykit.merging.iso_cts import iso_cts
from matrix_samples import random_group, step, task_vectors


def by_the_book(deltas, kept, own):
    u, s, v = torch.linalg.svd(sum(deltas), full_matrices=False)
    us, ss, vs = [u[:, :kept]], [s[:kept]], [v[:kept]]
    for delta in deltas:
        rest = delta - us[0] @ us[0].T @ delta
        u, s, v = torch.linalg.svd(rest, full_matrices=False)
        us, ss, vs = [*us, u[:, :own]], [*ss, s[:own]], [*vs, v[:own]]
    pu, _, qu = torch.linalg.svd(torch.cat(us, dim=1), full_matrices=False)
    pv, _, qv = torch.linalg.svd(torch.cat(vs), full_matrices=False)
    return torch.cat(ss).mean() * (pu @ qu) @ (pv @ qv)


@pytest.mark.parametrize(
    ("shape", "common", "kept", "own"),
    [((10, 14), 0.8, 7, 1), ((14, 10), 0.5, 4, 2), ((9, 9), 0.0, 0, 3), ((10, 12), 0.0, 1, 3)],
)
def test_it_is_the_papers_algorithm(shape, common, kept, own):
    group = random_group(*shape)
    expected = by_the_book(task_vectors(group), kept, own)
    torch.testing.assert_close(step(iso_cts(common=common), group), expected, rtol=1e-4, atol=1e-5)


def test_with_everything_common_it_is_iso_c():
    group = random_group(8, 9)
    torch.testing.assert_close(
        step(iso_cts(common=1.0), group), step(iso_c(), group), rtol=1e-5, atol=1e-6
    )


def test_it_never_asks_for_more_directions_than_there_are():
    group = random_group(3, 4, members=2)  # 1.5 each, which rounds to 4 of 3
    expected = by_the_book(task_vectors(group), 1, 1)
    torch.testing.assert_close(step(iso_cts(common=0.0), group), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("common", [-0.1, 80, float("nan"), "half"])
def test_common_is_a_fraction(common):
    with pytest.raises(
        InvalidParameter, match=r"'common' parameter of iso_cts must be a number in \[0, 1\]"
    ):
        iso_cts(common=common)
