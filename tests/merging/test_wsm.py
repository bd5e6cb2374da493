from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter
from alloykit.merging.wsm import DECAYS, decay_weights, wsm
from alloykit.types import TensorGroup


def merged(tensors, decay, weights=None):
    names = tuple(f"step {i}" for i in range(len(tensors)))
    weights = weights or (1 / len(tensors),) * len(tensors)
    return wsm(decay=decay).merge(TensorGroup("w", names, tuple(tensors), tuple(weights)), None)


@given(st.integers(1, 12), st.sampled_from(sorted(DECAYS)), st.integers(0, 1000))
def test_updates_count_as_if_the_learning_rate_had_decayed(count, decay, seed):
    """θ₀ + Σ f(i/n)·uᵢ, from the checkpoints θᵢ = θ₀ + u₁ + … + uᵢ."""
    generator = torch.Generator().manual_seed(seed)
    start, *updates = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    checkpoints = [start]
    for update in updates:
        checkpoints.append(checkpoints[-1] + update)
    expected = start + sum(
        DECAYS[decay](i / count) * update for i, update in enumerate(updates, start=1)
    )
    torch.testing.assert_close(merged(checkpoints, decay), expected)


def test_weights_of_four_checkpoints():
    assert decay_weights(4, "linear") == (0.25,) * 4
    half = math.sqrt(0.5)
    cosine = [(1 - half) / 2, half / 2, half / 2, (1 - half) / 2]
    assert decay_weights(4, "cosine") == pytest.approx(cosine)
    roots = [math.sqrt(i / 4) for i in range(5)]
    steps = [roots[i + 1] - roots[i] for i in range(4)]
    assert decay_weights(4, "inverse_sqrt") == pytest.approx(steps)
    assert decay_weights(1, "cosine") == (1.0,)


def test_weights_by_hand_multiply():
    tensors = [torch.tensor([0.0]), torch.tensor([1.0])]
    assert merged(tensors, "linear", (0.8, 0.2)).item() == pytest.approx(0.2)
    own = decay_weights(2, "inverse_sqrt")
    expected = 0.2 * own[1] / (0.8 * own[0] + 0.2 * own[1])
    assert merged(tensors, "inverse_sqrt", (0.8, 0.2)).item() == pytest.approx(expected)


def test_its_contract():
    assert wsm().ordered
    with pytest.raises(
        InvalidParameter, match=r"'decay' parameter of wsm .* Did you mean 'cosine'"
    ):
        wsm(decay="cosinus")
