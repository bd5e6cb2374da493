"""Divergences against TRL's generalised Jensen-Shannon divergence."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.testing import assert_close

from alloykit.distillation.jsd import jsd
from alloykit.distillation.kl import kl
from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.reverse_kl import reverse_kl


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        # TRL says at import that its experimental part may change, and imports what is deprecated.
        warnings.simplefilter("ignore")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
            patch.setenv("HF_HUB_OFFLINE", "1")
            from trl.experimental.gkd import GKDTrainer
    return GKDTrainer.generalized_jsd_loss


def tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, 3, 6, 11, generator=generator).double()
    labels = torch.randint(11, (3, 6), generator=generator)
    labels[0, :2], labels[2, 4:] = -100, -100
    return student, teacher, labels


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_jsd_equals_trl(theirs, beta, temperature):
    student, teacher, labels = tokens()
    expected = theirs(student, teacher, labels, beta=beta, temperature=temperature)
    loss = DistillationLoss("jsd", beta=beta, temperature=temperature, alpha=0, task="tokens")
    # TRL leaves out the square of the temperature.
    assert_close(loss(student, teacher, labels), temperature**2 * expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradients_equal_trls(theirs, beta):
    student, teacher, labels = tokens()
    mine, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = DistillationLoss("jsd", beta=beta, temperature=1.0, alpha=0, task="tokens", chunk=22)
    loss(mine, teacher, labels).backward()
    theirs(other, teacher, labels, beta=beta).backward()
    assert_close(mine.grad, other.grad, atol=1e-9, rtol=0)


def test_the_ends_are_kl(theirs):
    student, teacher, _ = tokens()
    rows, taught = student.flatten(0, 1), teacher.flatten(0, 1)
    for beta, loss in ((0, kl(1.0)), (1, reverse_kl(1.0)), (0.5, jsd(0.5, 1.0))):
        expected = theirs(student[:, :, None], teacher[:, :, None], beta=beta, reduction="none")
        assert_close(loss(rows, taught), expected.sum() / len(rows), atol=1e-9, rtol=0)


def test_num_items_divides_as_in_trl(theirs):
    student, teacher, labels = tokens()
    expected = theirs(student, teacher, labels, beta=0, num_items_in_batch=40)
    loss = DistillationLoss("kl", temperature=1.0, alpha=0, task="tokens")
    found = loss(student, teacher, labels, num_items=torch.tensor(40))
    assert_close(found, expected, atol=1e-9, rtol=0)
