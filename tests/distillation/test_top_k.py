"""Few classes and the mass of the others."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from alloykit.distillation.kl import kl
from alloykit.distillation.outputs import divergence
from alloykit.distillation.top_k import coarse, top_k


def draw(classes=8):
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(2, 6, classes, generator=generator).double()).log_softmax(-1)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_mass_is_kept(k):
    _, teacher = draw()
    logs, classes = top_k(teacher, k)
    assert_close(logs.exp().sum(1), torch.ones(6).double())
    assert_close(logs[:, :-1], teacher.sort(1, descending=True).values[:, :k])
    assert_close(teacher.gather(1, classes), logs[:, :-1])


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_full_divergence_is_the_coarse_one_and_what_the_others_differ_by(k):
    student, teacher = draw()
    logs, classes = top_k(teacher, k)
    rest = logs[:, -1].exp()
    hidden = torch.ones_like(teacher, dtype=torch.bool).scatter(1, classes, value=False)
    others_t = teacher[hidden].view(6, -1).log_softmax(1)
    others_s = student[hidden].view(6, -1).log_softmax(1)
    missing = rest * divergence(others_t, others_s)
    found = kl(1.0).compare(coarse(student, classes), logs, None)
    assert_close(found + missing, divergence(teacher, student), atol=1e-12, rtol=0)
    if k == 7:
        assert_close(missing, torch.zeros_like(missing))


def test_a_sure_teacher_has_a_finite_rest():
    logs, classes = top_k(torch.tensor([[0.0, -torch.inf, -torch.inf]]), 1)
    assert logs.tolist() == [[0.0, -1e4]]
    student = torch.zeros(1, 3, requires_grad=True)
    kl(1.0)(coarse(student.log_softmax(1), classes), logs).backward()
    assert torch.isfinite(student.grad).all()
