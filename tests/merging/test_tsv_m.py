from __future__ import annotations

from dataclasses import replace

import torch

from alloykit.merging.tsv_m import tsv_m
from matrix_samples import random_group, step, task_vectors


def by_the_book(deltas, rank):
    """The algorithm with full decompositions, as the paper states it."""
    us, ss, vs = zip(*(torch.linalg.svd(d, full_matrices=False) for d in deltas), strict=True)
    u = torch.cat([u[:, :rank] for u in us], dim=1)
    v = torch.cat([v[:rank] for v in vs])
    s = torch.cat([s[:rank] for s in ss])
    pu, _, qu = torch.linalg.svd(u, full_matrices=False)
    pv, _, qv = torch.linalg.svd(v, full_matrices=False)
    return (pu @ qu) @ torch.diag(s) @ (pv @ qv)


def test_it_is_the_papers_algorithm():
    for shape in ((9, 12), (12, 9), (10, 10)):
        group = random_group(*shape)
        expected = by_the_book(task_vectors(group), min(shape) // 3)
        torch.testing.assert_close(step(tsv_m(), group), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            step(tsv_m(scale=0.3), group), 0.3 * expected, rtol=1e-5, atol=1e-6
        )


def test_task_vectors_in_orthogonal_directions_are_all_kept_whole():
    left, right = torch.linalg.qr(torch.randn(6, 6))[0], torch.linalg.qr(torch.randn(8, 8))[0]
    parts = [left[:, 2 * t : 2 * t + 2] @ right[2 * t : 2 * t + 2] for t in range(3)]
    base = torch.zeros(6, 8)
    group = replace(random_group(6, 8), tensors=tuple(parts), base=base)
    torch.testing.assert_close(step(tsv_m(), group), sum(parts).double(), rtol=1e-5, atol=1e-6)


def test_equal_members_keep_their_common_strongest_directions():
    group = random_group(6, 8)
    alike = replace(group, tensors=(group.tensors[0],) * 3)
    u, s, vt = torch.linalg.svd(task_vectors(group)[0], full_matrices=False)
    expected = u[:, :2] * s[:2] @ vt[:2]
    torch.testing.assert_close(step(tsv_m(), alike), expected, rtol=1e-5, atol=1e-6)


def test_one_member_is_itself():
    group = random_group(6, 8, members=1)
    torch.testing.assert_close(step(tsv_m(), group), task_vectors(group)[0], rtol=0, atol=3e-7)


def test_more_members_than_rows_keep_a_direction_each():
    group = random_group(2, 8, members=5)
    assert torch.isfinite(step(tsv_m(), group)).all()
    row = random_group(1, 8, members=2)
    one, two = task_vectors(row)
    expected = by_the_book([one, two], 1)
    torch.testing.assert_close(step(tsv_m(), row), expected, rtol=1e-5, atol=1e-6)


def test_a_member_that_did_not_move_takes_nothing_away():
    group = random_group(6, 8)
    still = replace(group, tensors=(*group.tensors[:2], group.base))
    expected = by_the_book(task_vectors(group)[:2], 2)
    torch.testing.assert_close(step(tsv_m(), still), expected, rtol=1e-5, atol=1e-6)


def test_negation_turns_the_step_round():
    group = random_group(6, 8)
    negative = replace(group, weights=(-1.0, -1.0, -1.0))
    torch.testing.assert_close(step(tsv_m(), negative), -step(tsv_m(), group), atol=3e-7, rtol=0)
