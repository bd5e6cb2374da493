from __future__ import annotations

import math

import pytest
import torch

from alloykit.data.examples import as_examples
from alloykit.evaluation.metrics import metric
from alloykit.evaluation.scoring import scores


def test_scores_of_classes_whatever_form_the_outputs_have():
    split = as_examples((torch.zeros(2, 1), torch.tensor([0, 1])), "test")
    shares = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    expected = {"accuracy": 0.5, "log_loss": -(math.log(0.8) + math.log(0.4)) / 2}
    assert scores(shares, split, "classification") == pytest.approx(expected, rel=1e-6)
    assert scores(shares.log(), split, "classification") == pytest.approx(expected, rel=1e-6)


def test_scores_of_values_in_another_shape_and_metrics_of_ones_own():
    split = as_examples((torch.zeros(2, 1), torch.tensor([1.0, 3.0])), "test")
    outputs = torch.tensor([[1.0], [5.0]])
    assert scores(outputs, split, "regression") == {"mse": 2.0, "r2": -1.0}
    own = metric(lambda given, targets: float((given - targets).max()), higher_is_better=False)
    assert scores(outputs, split, "regression", [own]) == {own.name: 2.0}
