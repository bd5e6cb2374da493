from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from alloykit.ensembling.stack import member_stack
from alloykit.errors import DataError
from alloykit.evaluation.predicting import log_probabilities


def test_logits_and_probabilities_become_the_same_log_probabilities():
    logits = torch.randn(5, 4)
    stack = member_stack([logits, logits.softmax(1)], ["logits", "probabilities"], "classification")
    assert stack.shape == (2, 5, 4)
    assert_close(stack[0], stack[1])
    assert_close(stack[0], logits.log_softmax(1))


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3), (6, 1), (6,)])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_the_numbers_are_those_of_evaluation(shape, kind):
    outputs = torch.randn(shape) * 50
    if kind == "probabilities":
        outputs = outputs.softmax(-1) if len(shape) > 1 and shape[-1] > 1 else outputs.sigmoid()
    task = "tokens" if len(shape) == 3 else "classification"
    ours = member_stack([outputs], [kind], task)[0]
    assert_close(ours, log_probabilities(outputs, kind))
    assert bool(torch.isfinite(ours).all())


def test_zeros_and_minus_infinity_stay_finite():
    masked = torch.tensor([[0.0, -torch.inf]])
    certain = torch.tensor([[1.0, 0.0]])
    stack = member_stack([masked, certain], ["logits", "probabilities"], "classification")
    assert bool(torch.isfinite(stack).all())
    assert_close(stack.exp(), torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]))


def test_small_dtypes_become_float32_and_only_pure_float64_stays():
    half = torch.randn(2, 3).bfloat16()
    single, double = half.float(), half.double()
    kinds = ["logits", "logits"]
    assert member_stack([half, half], kinds, "classification").dtype == torch.float32
    assert member_stack([single, double], kinds, "classification").dtype == torch.float32
    assert member_stack([double, double], kinds, "classification").dtype == torch.float64
    assert member_stack([half], ["values"], "regression").dtype == torch.float32
    assert_close(member_stack([half], ["logits"], "classification")[0], single.log_softmax(1))


def test_outputs_that_do_not_stack_are_an_error():
    with pytest.raises(DataError, match="no members' outputs"):
        member_stack([], [], "classification")
    with pytest.raises(DataError, match="0: \\[2, 3\\]\n  1: \\[2, 4\\]"):
        member_stack([torch.ones(2, 3), torch.ones(2, 4)], ["logits"] * 2, "classification")
