from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import InvalidParameter
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.execution.scanning import merge_whole
from alloykit.merging.geometric_median import geometric_median
from alloykit.types import TensorGroup


def merged(tensors, weights=None, **parameters):
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = weights or (1 / len(tensors),) * len(tensors)
    group = TensorGroup("w", names, tuple(tensors), tuple(weights))
    return merge_whole(geometric_median(**parameters), group)


def cost(point, rows, weights):
    return float(np.dot(weights, np.linalg.norm(rows - point, axis=1)))


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 6))
def test_no_point_has_a_smaller_sum_of_distances(seed, count, size):
    generator = np.random.default_rng(seed)
    rows, weights = generator.normal(size=(count, size)), generator.dirichlet(np.ones(count))
    found = merged([torch.from_numpy(row) for row in rows], weights.tolist()).numpy()
    best = min(
        minimize(cost, start, (rows, weights), method="Nelder-Mead").fun
        for start in (found, rows.mean(0))
    )
    assert cost(found, rows, weights) <= best + 1e-7


def test_the_fermat_point_of_a_triangle():
    corners = [torch.tensor(c, dtype=torch.float64) for c in ([0.0, 0.0], [4.0, 0.0], [1.0, 3.0])]
    found = merged(corners)
    ways = [(corner - found) / (corner - found).norm() for corner in corners]
    torch.testing.assert_close(sum(ways), torch.zeros(2).double(), rtol=0, atol=1e-8)


def test_a_wide_corner_is_the_median_itself():
    corners = [torch.tensor([0.0, 0.1]), torch.tensor([-5.0, 0.0]), torch.tensor([5.0, 0.0])]
    assert torch.equal(merged(corners), corners[0])


def test_half_of_the_weight_decides():
    tensors = [torch.tensor([1.0, 0.3]), torch.tensor([2.0, 0.5]), torch.tensor([3.0, 9.0])]
    assert torch.equal(merged(tensors, (0.6, 0.2, 0.2)), tensors[0])


def test_on_a_line_it_is_the_median():
    assert merged([torch.tensor([x]) for x in (1.0, 7.0, 2.0)]).item() == 2.0
    even = [torch.tensor([x]) for x in (1.0, 7.0, 2.0, 4.0)]
    assert merged(even).item() == pytest.approx(3.0)
    assert merged([torch.tensor([1.0]), torch.tensor([2.0])]).item() == 1.5


def test_a_minority_cannot_move_it_far():
    generator = torch.Generator().manual_seed(0)
    honest = [1.0 + 0.1 * torch.randn(70_000, generator=generator) for _ in range(3)]
    broken = [torch.full((70_000,), 1e6)] * 2
    found = merged(honest + broken)
    assert float((found - 1.0).abs().mean()) < 0.2


def test_the_model_has_one_median_and_its_tensors_have_theirs():
    states = [
        {"a": torch.tensor([0.0]), "b": torch.tensor([0.0, 8.0])},
        {"a": torch.tensor([1.0]), "b": torch.tensor([9.0, 0.0])},
        {"a": torch.tensor([5.0]), "b": torch.tensor([-9.0, 0.0])},
    ]
    members = [MemoryCheckpoint(state, id=f"m{i}") for i, state in enumerate(states)]

    def found(scope):
        plan = plan_merge(members, "geometric_median", {"scope": scope})
        return merge_in_memory(plan, members)

    assert found("tensor")["a"].item() == 1.0
    together = found("model")
    rows = [torch.cat([state["a"], state["b"]]) for state in states]
    torch.testing.assert_close(torch.cat([together["a"], together["b"]]), merged(rows))
    assert together["a"].item() != pytest.approx(1.0, abs=0.05)


def test_the_scope_is_one_of_two():
    with pytest.raises(
        InvalidParameter, match=r"'scope' .* must be 'tensor' or 'model'\. Got 'layer'"
    ):
        geometric_median(scope="layer")
    assert geometric_median(scope="model").scope == "model"
