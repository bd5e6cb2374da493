"""The run of a student: each example with its own teacher's answer, and scores without a number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alloykit.api.distilling import distill
from alloykit.data.examples import as_examples
from alloykit.distillation.student import validation_score
from alloykit.training.settings import Training

INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0).long()


@pytest.mark.parametrize("teaching", ["full", "half", 2, "given", "online"])
def test_each_example_meets_what_the_teacher_said_of_it(teaching, tmp_path):
    # A student that is the teacher and hardly moves has nothing to learn, in whatever order it
    # sees the examples, unless their teacher's answers are those of others.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    options = {"stored": tmp_path / "store", "keep": teaching}
    if teaching == "given":
        options = {"teachers": model(INPUTS).detach()}
    elif teaching == "online":
        options = {"augment": lambda inputs: inputs}
    options = {"teachers": model, **options}
    still = Training(epochs=2, batch_size=9, learning_rate=1e-12)
    found = distill(model, train=INPUTS, alpha=0, training=still, **options)
    assert max(found.history.losses) < 1e-4
    others = {**options, "teachers": model(INPUTS.roll(1, 0)).detach()}
    if teaching == "given":
        assert min(distill(model, train=INPUTS, alpha=0, training=still, **others).history.losses
                   ) > 1e-2  # fmt: skip


def test_a_student_that_gives_nan_scores_nan_and_is_never_the_best():
    held_out = as_examples((INPUTS, LABELS), "validation")
    broken = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    judged = validation_score(held_out, "classification")
    assert math.isfinite(judged.measure(broken))
    with torch.no_grad():
        broken[2].bias.fill_(torch.nan)
    assert math.isnan(judged.measure(broken))
