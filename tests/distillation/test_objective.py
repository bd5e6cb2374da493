"""Soft and hard loss together, for examples and for values."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from alloykit.distillation.kl import kl
from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.top_k import top_k
from alloykit.errors import DataError, InvalidParameter, MissingInput, UnknownName

LABELS = torch.tensor([0, 3, 2, 1, 4])


def draw(seed=0, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(2, 5, classes, generator=generator).double()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_is_the_weight_of_the_hard_loss(alpha):
    student, teacher = draw()
    soft, hard = kl(2.0)(student, teacher), F.cross_entropy(student, LABELS)
    found = DistillationLoss(alpha=alpha)(student, teacher, LABELS)
    assert_close(found, (1 - alpha) * soft + alpha * hard)


def test_repr_says_which_weight_is_which():
    assert repr(DistillationLoss(alpha=0.25)) == (
        "DistillationLoss(soft 0.75 x kl(T=2) + hard 0.25 x cross-entropy)"
    )
    mixed = DistillationLoss({"kl": 1, "mse": 0.5}, temperature=4, label_smoothing=0.1)
    assert mixed.extra_repr() == (
        "soft 0.5 x (kl(T=4) + 0.5 x mse) + hard 0.5 x cross-entropy(smoothing=0.1)"
    )
    assert DistillationLoss(task="regression").extra_repr() == (
        "soft 0.5 x values + hard 0.5 x squared error"
    )


def test_several_losses_are_weighed():
    student, teacher = draw()
    found = DistillationLoss({"kl": 2, "jsd": 0.5}, alpha=0, temperature=3.0, beta=0.2)
    kl_alone = DistillationLoss("kl", alpha=0, temperature=3.0)(student, teacher)
    jsd_alone = DistillationLoss("jsd", alpha=0, temperature=3.0, beta=0.2)(student, teacher)
    assert_close(found(student, teacher), 2 * kl_alone + 0.5 * jsd_alone)


def test_label_smoothing_is_torchs():
    student, teacher = draw()
    found = DistillationLoss(alpha=1, label_smoothing=0.2)(student, teacher, LABELS)
    assert_close(found, F.cross_entropy(student, LABELS, label_smoothing=0.2))


def test_examples_without_a_label_count_in_the_soft_loss_alone():
    student, teacher = draw()
    labels = torch.tensor([0, -100, 2, -100, 4])
    found = DistillationLoss(alpha=0.5)(student, teacher, labels)
    hard = F.cross_entropy(student[::2], labels[::2])
    assert_close(found, 0.5 * kl()(student, teacher) + 0.5 * hard)
    nothing = DistillationLoss(alpha=1)(student, teacher, torch.full((5,), -100))
    assert float(nothing) == 0.0


def test_losses_with_labels_leave_out_examples_without_one():
    student, teacher = draw()
    labels = torch.tensor([0, -100, 2, -100, 4])
    loss = DistillationLoss("decoupled", alpha=0)
    assert_close(loss(student, teacher, labels), loss(student[::2], teacher[::2], labels[::2]))


def test_num_items_makes_batches_add_up_to_the_whole():
    student, teacher = draw()
    loss = DistillationLoss()
    whole = loss(student, teacher, LABELS)
    parts = [
        loss(student[rows], teacher[rows], LABELS[rows], num_items=5)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    assert_close(sum(parts), whole)


def test_top_k_teachers_and_losses_that_need_all_classes():
    student, teacher = draw()
    logs, classes = top_k(teacher.log_softmax(1), 4)
    full = DistillationLoss(alpha=0)(student, teacher)
    assert_close(DistillationLoss(alpha=0)(student, logs, classes=classes), full)
    with pytest.raises(InvalidParameter, match="mse needs all of the teacher's classes"):
        DistillationLoss("mse", alpha=0)(student, logs, classes=classes)


def test_values_of_a_regression():
    student, teacher = draw(classes=2)
    labels = torch.ones(5, 2).double()
    found = DistillationLoss(task="regression", alpha=0.25)(student, teacher, labels)
    assert_close(found, 0.75 * F.mse_loss(student, teacher) + 0.25 * F.mse_loss(student, labels))
    flat = DistillationLoss(task="regression", alpha=0)
    assert_close(flat(student[:, :1], teacher[:, 0]), F.mse_loss(student[:, 0], teacher[:, 0]))


def test_features_are_a_term_of_their_own():
    student, teacher = draw()
    features = (torch.ones(5, 3), torch.zeros(5, 3))
    loss = DistillationLoss({"kl": 1, "hint": 4}, alpha=0.5)
    found = loss(student, teacher, LABELS, features=features)
    assert_close(found, DistillationLoss()(student, teacher, LABELS) + 0.5 * 4 * 0.5)
    with pytest.raises(MissingInput, match="hint compares features: pass features="):
        loss(student, teacher, LABELS)
    with pytest.raises(InvalidParameter, match="leave the student's output untrained"):
        DistillationLoss("hint", alpha=0)


def test_half_precision_and_autocast_are_computed_in_float32():
    student, teacher = (part.to(torch.bfloat16) for part in draw())
    expected = DistillationLoss()(student.float(), teacher.float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = DistillationLoss()(student, teacher, LABELS)
        hints = torch.randn(2, 6, 4)
        relation = DistillationLoss("relational", alpha=0.5)
        inside = relation(student, None, LABELS, features=tuple(hints.repeat(1, 1, 1)))
    assert found.dtype == torch.float32
    assert_close(found, expected)
    assert_close(inside, relation(student, None, LABELS, features=tuple(hints)))


def test_outputs_of_transformers_and_students_with_a_softmax():
    student, teacher = draw()
    expected = DistillationLoss()(student, teacher, LABELS)
    assert_close(DistillationLoss()({"logits": student}, {"logits": teacher}, LABELS), expected)
    softmaxed = DistillationLoss(student_form="probabilities", teacher_form="probabilities")
    assert_close(softmaxed(student.softmax(1), teacher.softmax(1), LABELS), expected)


def test_the_teacher_gets_no_gradient():
    student, teacher = draw()
    teacher.requires_grad_()
    DistillationLoss()(student.requires_grad_(), teacher, LABELS).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"alpha": 1.5}, InvalidParameter, r"'alpha' must be in \[0, 1\]. Got 1.5. \(It is the weight of the hard"),
        ({"alpha": -0.1}, InvalidParameter, "Got -0.1"),
        ({"alpha": float("nan")}, InvalidParameter, "Got nan"),
        ({"temperature": 0}, InvalidParameter, "must be above 0. Got 0"),
        ({"label_smoothing": 1.0}, InvalidParameter, r"must be in \[0, 1\)"),
        ({"task": "clasification"}, InvalidParameter, "Did you mean 'classification'"),
        ({"loss": "kll"}, UnknownName, "Did you mean 'kl'"),
        ({"loss": "kl", "beta": 1}, InvalidParameter, "kl has no parameter 'beta'"),
        ({"loss": {"kl": 0}}, InvalidParameter, "one weight above 0 each"),
        ({"loss": {}}, InvalidParameter, "one weight above 0 each"),
        ({"loss": "values"}, InvalidParameter, "serves regression, not classification"),
        ({"loss": "hint", "task": "tokens"}, InvalidParameter, "not tokens"),
        ({"loss": "kl", "task": "regression"}, InvalidParameter, "there are: hint, relational, values"),
    ],
)  # fmt: skip
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        DistillationLoss(**options)


def test_missing_labels_teachers_and_other_classes():
    student, teacher = draw()
    with pytest.raises(MissingInput, match=r"The hard loss \(alpha=0.5\) needs labels.*alpha=0"):
        DistillationLoss()(student, teacher)
    with pytest.raises(MissingInput, match="decoupled needs labels"):
        DistillationLoss("decoupled", alpha=0)(student, teacher)
    with pytest.raises(MissingInput, match="kl needs teacher="):
        DistillationLoss()(student, None, LABELS)
    with pytest.raises(DataError, match=r"same classes in the same order. .*mapping="):
        DistillationLoss()(student, teacher[:, :4], LABELS)
    with pytest.raises(DataError, match="the teacher are"):
        DistillationLoss(task="regression", alpha=0)(student, teacher[:, :2])
