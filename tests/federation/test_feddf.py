from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alloykit.data.examples import from_arrays
from alloykit.errors import DataError, InvalidParameter, MissingInput
from alloykit.federation.feddf import answers, distil, pooled
from alloykit.training.order import epoch_order
from alloykit.training.settings import Training

LOGITS = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))


def split(count: int = 24):
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return inputs, from_arrays(inputs, torch.zeros(count, dtype=torch.long), "train")


def test_pooled_logits_are_those_of_the_paper():
    given = [F.log_softmax(logits, -1) for logits in LOGITS]
    found = F.softmax(pooled(given) / 3.0, -1)
    torch.testing.assert_close(found, F.softmax(LOGITS.double().mean(0) / 3.0, -1).float())


def test_pooled_probabilities_and_values():
    given = [F.log_softmax(logits, -1) for logits in LOGITS]
    torch.testing.assert_close(pooled(given, "probabilities").exp(), F.softmax(LOGITS, -1).mean(0))
    torch.testing.assert_close(pooled(list(LOGITS), "probabilities", "regression"), LOGITS.mean(0))


def test_it_is_one_loop_on_the_paper_loss():
    """AdamW by hand on KL(teacher ‖ student) of tempered probabilities, times T²."""
    inputs, examples = split()
    torch.manual_seed(0)
    ours = nn.Linear(3, 4).double()
    theirs = nn.Linear(3, 4).double()
    theirs.load_state_dict(ours.state_dict())
    teacher = LOGITS[0].repeat(4, 1)[:24]
    distil(
        ours,
        examples,
        teacher,
        Training(epochs=2, batch_size=6, schedule="constant"),
        temperature=2.0,
    )
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=2e-3, weight_decay=0.01)
    for epoch in (1, 2):
        for batch in epoch_order(0, epoch, 24).split(6):
            optimizer.zero_grad()
            wanted = F.log_softmax(teacher[batch].double() / 2, -1)
            said = F.log_softmax(theirs(inputs[batch].double()) / 2, -1)
            loss = (wanted.exp() * (wanted - said)).sum(-1).mean() * 4
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("last", [nn.Identity(), nn.Softmax(-1), nn.LogSoftmax(-1)])
def test_students_may_give_logits_or_probabilities(last):
    inputs, examples = split()
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(3, 4), last)
    teacher = F.log_softmax(inputs @ torch.randn(3, 4) * 3, -1)
    distil(
        student,
        examples,
        teacher,
        Training(epochs=150, batch_size=24, learning_rate=0.05, weight_decay=0.0),
    )
    torch.testing.assert_close(
        answers(student, examples, "classification").exp(), teacher.exp(), rtol=0, atol=0.1
    )


def test_one_logit_and_regression():
    _, examples = split()
    single = nn.Linear(3, 1)
    said = answers(single, examples, "classification")
    assert said.shape == (24, 2)
    student = nn.Linear(3, 1)
    distil(
        student,
        examples,
        pooled([said]),
        Training(epochs=200, batch_size=24, learning_rate=0.05, weight_decay=0.0),
    )
    torch.testing.assert_close(student.weight, single.weight, rtol=0, atol=0.05)
    values = answers(single, examples, "regression")
    other = nn.Linear(3, 1)
    distil(other, examples, pooled([values], task="regression"),
           Training(epochs=200, batch_size=24, learning_rate=0.05, weight_decay=0.0), task="regression")  # fmt: skip
    torch.testing.assert_close(other.weight, single.weight, rtol=0, atol=0.05)


def test_mistakes():
    with pytest.raises(MissingInput, match="no client"):
        pooled([])
    with pytest.raises(DataError, match=r"\[7, 3\] and \[7, 4\]"):
        pooled([LOGITS[0], LOGITS[0, :, :3]])
    with pytest.raises(
        InvalidParameter, match=r"'pooling' must be logits or probabilities\. Got 'votes'"
    ):
        pooled([LOGITS[0]], "votes")
    with pytest.raises(InvalidParameter, match="unlabelled tokens"):
        distil(nn.Linear(3, 4), split()[1], LOGITS[0], Training(), task="tokens")
