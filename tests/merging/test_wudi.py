from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.merging.wudi import wudi
from matrix_samples import random_group, step, task_vectors


def objective(merged, deltas):
    return sum(((merged - d) @ d.T).square().sum() / d.square().sum() for d in deltas)


@pytest.mark.parametrize("shape", [(9, 12), (12, 9), (3, 20)])
def test_no_optimiser_finds_less_interference(shape):
    group = random_group(*shape)
    deltas = task_vectors(group)
    found = step(wudi(), group)
    tried = sum(deltas).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([tried], max_iter=500, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = objective(tried, deltas)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective(found, deltas) <= objective(tried.detach(), deltas) + 1e-6
    assert objective(found, deltas) < 0.9 * objective(sum(deltas), deltas)
    torch.testing.assert_close(found, tried.detach(), rtol=0, atol=5e-4)


def test_tasks_on_inputs_of_their_own_are_all_kept_whole():
    parts = [torch.zeros(4, 6) for _ in range(3)]
    for index, part in enumerate(parts):
        part[:, 2 * index : 2 * index + 2] = torch.randn(4, 2)
    group = replace(random_group(4, 6), tensors=tuple(parts), base=torch.zeros(4, 6))
    torch.testing.assert_close(step(wudi(), group), sum(parts).double(), rtol=1e-4, atol=1e-5)


def test_equal_members_are_that_member_and_not_three_times_it():
    group = random_group(8, 6)
    alike = replace(group, tensors=(group.tensors[0],) * 3)
    torch.testing.assert_close(step(wudi(), alike), task_vectors(group)[0], rtol=1e-3, atol=1e-5)


def test_directions_that_nobody_took_stay_at_the_base():
    group = random_group(2, 9, members=2)
    found = step(wudi(), group)
    rows = torch.cat(task_vectors(group))
    outside = torch.eye(9).double() - torch.linalg.pinv(rows) @ rows
    assert (found @ outside).abs().max() < 1e-6


def test_a_member_that_did_not_move_changes_nothing():
    group = random_group(8, 6)
    still = replace(group, tensors=(*group.tensors[:2], group.base))
    two = replace(
        group, members=group.members[:2], tensors=group.tensors[:2], weights=group.weights[:2]
    )
    torch.testing.assert_close(step(wudi(), still), step(wudi(), two), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_the_ridge_is_positive(ridge):
    with pytest.raises(
        InvalidParameter, match="'ridge' parameter of wudi must be a finite number, at least 1e-15"
    ):
        wudi(ridge=ridge)
