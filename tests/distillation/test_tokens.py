"""Losses over tokens: which rows count, the same numbers in chunks, and bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.tokens import chunked_sum, scored_rows
from alloykit.distillation.top_k import top_k
from alloykit.errors import DataError
from alloykit.registry import distillation_losses

OF_TOKENS = [e.name for e in distillation_losses.entries() if "tokens" in e.contract["tasks"]]


def draw(examples=3, positions=6, words=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, examples, positions, words, generator=generator).double()
    labels = torch.randint(words, (examples, positions), generator=generator)
    labels[0, :3], labels[1, 4:] = -100, -100
    return student, teacher, labels


def whole(student, teacher, labels, temperature=2.0, alpha=0.5):
    """The same by plain torch, all at once."""
    counted = labels != -100
    s, t = student[counted], teacher[counted]
    soft = F.kl_div(
        (s / temperature).log_softmax(1),
        (t / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - alpha) * temperature**2 * soft + alpha * F.cross_entropy(s, labels[counted])


@pytest.mark.parametrize("chunk", [1, 9, 40, 1 << 20])
def test_chunks_give_the_same_loss_and_gradient_as_the_whole(chunk):
    student, teacher, labels = draw()
    mine, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    found = DistillationLoss(task="tokens", chunk=chunk)(mine, teacher, labels)
    expected = whole(other, teacher, labels)
    (3 * found).backward()
    (3 * expected).backward()
    assert_close(found, expected, atol=1e-12, rtol=0)
    assert_close(mine.grad, other.grad, atol=1e-12, rtol=0)
    assert (mine.grad[labels == -100] == 0).all()


@pytest.mark.parametrize("name", OF_TOKENS)
def test_gradients_of_chunks_are_right(name):
    student, teacher, labels = draw(examples=2, positions=3, words=4)
    loss = DistillationLoss(name, task="tokens", chunk=8)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), student.requires_grad_())


def test_labels_are_shifted_before_they_are_masked():
    student, teacher, labels = draw()
    found = DistillationLoss(task="tokens", shift=True)(student, teacher, labels)
    moved = whole(student[:, :-1], teacher[:, :-1], labels[:, 1:])
    assert_close(found, moved, atol=1e-12, rtol=0)
    assert not torch.isclose(found, whole(student, teacher, labels))


def test_rows_that_count():
    labels = torch.tensor([[1, -100, 2], [-100, -100, 3]])
    assert scored_rows((2, 3), labels)[0].tolist() == [0, 2, 5]
    rows, known = scored_rows((2, 3), labels, shift=True)
    assert (rows.tolist(), known.tolist()) == ([1, 4], [2, 3])
    assert scored_rows((2, 3), None)[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert scored_rows((2, 3), None, shift=True)[0].tolist() == [0, 1, 3, 4]
    with pytest.raises(DataError, match=r"Labels \[2, 3\] do not fit outputs of 2 examples with 4"):
        scored_rows((2, 4), labels)


def test_unscored_rows_may_hold_anything():
    student, teacher, labels = draw()
    expected = DistillationLoss(task="tokens")(student, teacher, labels)
    student[labels == -100], teacher[labels == -100] = torch.nan, torch.inf
    student.requires_grad_()
    found = DistillationLoss(task="tokens")(student, teacher, labels)
    found.backward()
    assert_close(found, expected)
    assert torch.isfinite(student.grad).all()


def test_a_batch_in_which_nothing_counts_has_the_loss_zero():
    student, teacher, labels = draw()
    student.requires_grad_()
    loss = DistillationLoss(task="tokens")(student, teacher, torch.full_like(labels, -100))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert (student.grad == 0).all()


def test_without_labels_every_position_counts():
    student, teacher, _ = draw()
    found = DistillationLoss(task="tokens", alpha=0)(student, teacher)
    rows = DistillationLoss(alpha=0)(student.flatten(0, 1), teacher.flatten(0, 1))
    assert_close(found, rows)


def test_num_items_makes_batches_add_up_to_the_whole():
    student, teacher, labels = draw()
    loss = DistillationLoss(task="tokens")
    items = (labels != -100).sum()
    parts = [
        loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], num_items=items)
        for i in range(3)
    ]
    assert_close(sum(parts), loss(student, teacher, labels))


def test_a_top_k_teacher():
    student, teacher, labels = draw()
    logs, classes = top_k(teacher.log_softmax(-1), 8)
    loss = DistillationLoss(task="tokens", chunk=20)
    assert_close(loss(student, logs, labels, classes=classes), loss(student, teacher, labels))


def test_bfloat16_students_get_bfloat16_gradients_of_a_float32_loss():
    student, teacher, labels = draw()
    student, teacher = student.bfloat16().requires_grad_(), teacher.bfloat16()
    found = DistillationLoss(task="tokens", chunk=20)(student, teacher, labels)
    found.backward()
    assert (found.dtype, student.grad.dtype) == (torch.float32, torch.bfloat16)
    assert_close(found, whole(student.detach().float(), teacher.float(), labels))


class Largest(TorchDispatchMode):
    """Sizes in bytes of what is made inside, by operation."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
            self.made.append((out.untyped_storage().nbytes(), out.dtype, str(func)))
        return out


@pytest.mark.parametrize("keep", [None, 8])
def test_no_more_than_a_chunk_is_in_float32(keep):
    """Beside the inputs and one gradient of the student's dtype, all that is made is a chunk."""
    generator = torch.Generator().manual_seed(0)
    rows, words, chunk = 512, 256, 16 * 256
    student = torch.randn(4, rows // 4, words, generator=generator).bfloat16().requires_grad_()
    teacher = torch.randn(4, rows // 4, words, generator=generator).bfloat16()
    labels = torch.randint(words, (4, rows // 4), generator=generator)
    classes = None
    if keep:
        teacher, classes = top_k(teacher.float().log_softmax(-1), keep)
    loss = DistillationLoss(task="tokens", chunk=chunk, shift=True)
    with Largest() as forward:
        found = loss(student, teacher, labels, classes=classes)
    with Largest() as backward:
        found.backward()
    most = 4 * chunk + 64
    assert max(size for size, _, _ in forward.made) <= most
    large = [(size, dtype) for size, dtype, _ in backward.made if size > most]
    gradient = 2 * rows * words
    assert large, "the gradient itself should be seen"
    assert all(size == gradient and dtype == torch.bfloat16 for size, dtype in large)
    with Largest() as unchunked:
        DistillationLoss(task="tokens", shift=True)(student, teacher, labels, classes=classes)
    assert max(size for size, _, _ in unchunked.made) > 4 * most, "the test sees nothing"


def test_the_sum_calls_the_loss_on_few_rows_at_a_time():
    sizes = []

    def loss(student, other):
        sizes.append(len(student))
        return (student * other).sum(1)

    student, other = torch.ones(7, 3, requires_grad=True), torch.full((7, 3), 2.0)
    total = chunked_sum(loss, student, torch.tensor([0, 1, 2, 4, 6]), other, chunk=6)
    total.backward()
    assert float(total.detach()) == 30.0
    assert sizes == [2, 2, 1, 2, 2, 1]
    assert student.grad[:, 0].tolist() == [2, 2, 2, 0, 2, 0, 2]


def test_labels_alone_need_no_teacher():
    outputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 3, 0], [4, 2, -100, -100]])
    found = DistillationLoss(task="tokens", alpha=1.0)(outputs, None, labels)
    assert_close(found, F.cross_entropy(outputs.flatten(0, 1), labels.flatten()))
