"""Centred clipping: the mean, with each client cut to a length around the mean itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.centred_clipping import centred_clipping, centred_coefficients
from alloykit.federation.update import Update


def plain(rows, clip_norm: float, iterations: int):
    centre = np.zeros(rows.shape[1])
    for _ in range(iterations):
        steps = []
        for row in rows:
            way = row - centre
            length = np.linalg.norm(way)
            steps.append(way * min(1.0, clip_norm / length) if length else way)
        centre = centre + np.mean(steps, axis=0)
    return centre


@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0.05, 20.0), st.integers(1, 5))
def test_it_is_the_iteration_on_the_vectors_themselves(seed, count, clip_norm, iterations):
    rows = np.random.default_rng(seed).standard_normal((count, 4))
    found = centred_coefficients(rows @ rows.T, clip_norm, iterations)
    np.testing.assert_allclose(found @ rows, plain(rows, clip_norm, iterations), atol=1e-9)


def test_one_hostile_client_moves_it_by_a_share_of_the_clip_norm():
    server = {"w": torch.zeros(2, dtype=torch.float64)}
    sent = [Update(n, {"w": server["w"].clone()}) for n in "abc"]
    sent.append(Update("d", {"w": torch.tensor([0.0, 90.0], dtype=torch.float64)}))
    done = aggregate_updates(server, sent, centred_clipping(clip_norm=2.0))
    assert done.tensors["w"].tolist() == pytest.approx([0.0, 0.5])


def test_all_wrong_parameters_are_named():
    with pytest.raises(
        InvalidParameter, match=r"'clip_norm' must(.|\n)*'iterations' must be a whole"
    ):
        centred_clipping(clip_norm=-1.0, iterations=0)
