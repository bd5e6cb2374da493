from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.ensembling.objectives import (
    brier_weights,
    log_loss_weights,
    log_pool_weights,
    squared_error_weights,
)
from alloykit.ensembling.simplex import Objective, minimise, quadratic_minimum
from alloykit.errors import AlloyError


def logs(*members):
    return torch.tensor(members, dtype=torch.float64).log()


def test_quadratic_minimum_by_hand_inside_on_an_edge_and_in_a_corner():
    centre = np.full(3, 1 / 3)
    bowl = np.diag([1.0, 2.0, 2.0])
    inside = quadratic_minimum(bowl, bowl @ centre, centre)
    assert inside == pytest.approx([0.5, 0.25, 0.25], abs=1e-10)
    edge = quadratic_minimum(np.eye(3), centre + np.array([0.0, 0.0, 5.0]), centre)
    assert edge == pytest.approx([0.5, 0.5, 0.0], abs=1e-10)
    assert edge[2] == 0
    start = np.array([0.0, 0.5, 0.5])
    corner = quadratic_minimum(np.eye(3), start + np.array([-9.0, 0.0, 0.0]), start)
    assert corner.tolist() == [1.0, 0.0, 0.0]


def test_log_loss_weights_by_hand():
    # Two members, each sure of its own example: -½ log w - ½ log(1 - w) is smallest at ½; with two
    # of three examples the first one's, at ⅔.
    found = log_loss_weights(logs([1.0, 1.0, 1e-300], [1e-300, 1e-300, 1.0]))
    assert found.weights == pytest.approx([2 / 3, 1 / 3], abs=1e-8)
    assert found.value == pytest.approx(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))
    assert found.gap <= 1e-8


def test_brier_weights_by_hand():
    # One example of class 0: (1 - w·1 - (1-w)·0.5)² is zero at w = 1.
    found = brier_weights(logs([[1.0, 1e-30]], [[0.5, 0.5]]), torch.tensor([0]))
    assert found.weights.tolist() == [1.0, 0.0]
    assert found.value == pytest.approx(0, abs=1e-12)


def test_squared_error_weights_by_hand():
    # Errors +1 and -3 cancel at weights 3/4 and 1/4.
    values = torch.tensor([[[1.0], [3.0]], [[-3.0], [-1.0]]])
    found = squared_error_weights(values, torch.tensor([[0.0], [2.0]]))
    assert found.weights == pytest.approx([0.75, 0.25], abs=1e-9)


def test_log_pool_weights_leave_out_the_member_that_is_wrong():
    good, bad = [[0.9, 0.1], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]]
    found = log_pool_weights(logs(good, bad), torch.tensor([0, 1]))
    assert found.weights.tolist() == [1.0, 0.0]


SOLVERS = {
    "log_loss": lambda stack, targets: log_loss_weights(
        stack[:, torch.arange(len(targets)), targets]
    ),
    "log_pool": log_pool_weights,
    "brier": brier_weights,
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_members_share_evenly_and_one_member_gets_all(solver):
    torch.manual_seed(0)
    member = torch.randn(1, 30, 4).log_softmax(-1)
    targets = torch.randint(4, (30,))
    one = SOLVERS[solver](member, targets)
    assert one.weights.tolist() == [1.0]
    many = SOLVERS[solver](member.expand(5, 30, 4), targets)
    assert many.weights == pytest.approx(np.full(5, 0.2), abs=1e-9)
    assert many.value == pytest.approx(one.value, abs=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 300.0])
@pytest.mark.parametrize(("members", "examples"), [(2, 1), (12, 5), (8, 60)])
def test_every_solution_is_certified(solver, scale, members, examples):
    generator = torch.Generator().manual_seed(members)
    stack = (torch.randn(members, examples, 3, generator=generator) * scale).log_softmax(-1)
    targets = torch.randint(3, (examples,), generator=generator)
    found = SOLVERS[solver](stack, targets)
    assert found.gap <= (1e-8 if solver != "brier" else 2e-10)
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)


def test_rows_to_which_nobody_gives_anything_do_not_move_the_weights():
    usable = logs([0.7, 0.2, 0.9], [0.3, 0.9, 0.1])
    hopeless = torch.full((2, 2), -torch.inf, dtype=torch.float64)
    floored = torch.full((2, 2), -1e4, dtype=torch.float64)
    expected = log_loss_weights(usable).weights
    assert expected.min() > 0.1
    # The same minimum, seen through a flatter objective.
    for rows in (hopeless, floored):
        assert log_loss_weights(torch.cat([usable, rows], 1)).weights == pytest.approx(
            expected, abs=1e-4
        )


def test_a_row_that_only_one_member_can_explain_keeps_that_member():
    truth = torch.tensor([[-0.1, -0.1, -0.1, -1e4], [-1.0, -1.0, -1.0, -50.0]])
    found = log_loss_weights(truth)
    assert found.weights[1] > 0.2
    assert found.gap <= 1e-8


def test_large_values_are_certified_relative_to_their_size():
    generator = torch.Generator().manual_seed(0)
    values = 1e9 + 1e6 * torch.randn(4, 50, 2, generator=generator).double()
    targets = 1e9 + 1e6 * torch.randn(50, 2, generator=generator).double()
    found = squared_error_weights(values, targets)
    small = squared_error_weights((values - 1e9) / 1e6, (targets - 1e9) / 1e6)
    assert found.weights == pytest.approx(small.weights, abs=1e-6)
    assert found.gap <= 1e-10 * 1e13


def test_blocks_do_not_change_the_solution(monkeypatch):
    torch.manual_seed(1)
    stack, targets = torch.randn(3, 40, 4).log_softmax(-1), torch.randint(4, (40,))
    whole = [log_pool_weights(stack, targets), brier_weights(stack, targets)]
    monkeypatch.setattr("alloykit.ensembling.stack.BLOCK", 3 * 4 * 7)
    parts = [log_pool_weights(stack, targets), brier_weights(stack, targets)]
    for one, other in zip(whole, parts, strict=True):
        assert one.weights == pytest.approx(other.weights, abs=1e-10)


def test_a_solution_that_is_not_certified_is_an_error():
    # Gradients that contradict the values: no step can fall.
    liar = Objective(
        value=lambda weights: float(weights[0]),
        derivatives=lambda weights: (np.array([-1.0, 1.0]), np.eye(2)),
        tolerance=1e-8,
    )
    with pytest.raises(AlloyError, match="certificate reached 1 where 1e-08"):
        minimise(liar, 2)
