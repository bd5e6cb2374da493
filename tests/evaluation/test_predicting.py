from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alloykit.data.examples import as_examples
from alloykit.data.storage import room
from alloykit.errors import DataError
from alloykit.evaluation.predicting import detect_kind, log_probabilities, predict

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
SPLIT = as_examples((X, torch.zeros(10).long()), "test", batch_size=4)


class Gives(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, *args, **kwargs):
        return self.what(*args, **kwargs)


def state_bytes(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_predictions_equal_the_models_in_evaluation_mode_and_nothing_changes():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model.train()
    model[1].eval()
    before, flags = state_bytes(model), [m.training for m in model.modules()]
    done = []
    outputs = predict(model, SPLIT, progress=lambda n, total: done.append((n, total)))
    assert state_bytes(model) == before
    assert [m.training for m in model.modules()] == flags == [True, True, False, True, True]
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, model.eval()(X).detach())
    assert done == [(4, 10), (8, 10), (10, 10)]


def test_gradients_are_off_and_flags_of_stubborn_modules_are_restored():
    class Stubborn(nn.Module):
        def train(self, mode=True):
            return super().train(False)

        def forward(self, x):
            assert not torch.is_grad_enabled()
            return x

    model = Stubborn()
    model.training = True
    predict(model, SPLIT)
    assert model.training


def test_training_flags_are_restored_after_an_error():
    model = nn.Sequential(nn.Linear(7, 2), nn.Dropout())
    with pytest.raises(DataError, match=r"cannot be run on inputs \[4, 3\] torch.float32"):
        predict(model, SPLIT)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "what",
    [
        lambda x: {"logits": x, "loss": None},
        lambda x: OrderedDict(logits=x),
        lambda x: SimpleNamespace(logits=x),
        lambda x: x.double(),
        lambda x: x,
    ],
)
def test_outputs_may_carry_logits(what):
    outputs = predict(Gives(what), SPLIT)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, X)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (lambda x: (x,), "gives a tuple, which has no logits"),
        (lambda x: {"scores": x}, "gives a dict, which has no logits"),
        (lambda x: x.numpy(), "gives a ndarray"),
        (lambda x: x[:1], r"outputs of the shape \[1, 3\] for 4 examples"),
        (lambda x: x.sum(), r"outputs of the shape \[\] for 4"),
        (lambda x: x[:, : len(x)], r"changes from \[3\] to \[2\] .* at example 9"),
    ],
)
def test_other_outputs_are_refused(what, text):
    with pytest.raises(DataError, match=text):
        predict(Gives(what), SPLIT)


def test_unusable_outputs_are_counted():
    inputs = X.clone()
    inputs[1, 2] = float("nan")
    inputs[7] = float("inf")
    inputs[8, 0] = -float("inf")
    split = as_examples((inputs, torch.zeros(10).long()), "validation", batch_size=4)
    with pytest.raises(DataError, match=r"NaN or \+Inf for 2 of 10 examples of validation"):
        predict(nn.Identity(), split)
    single = as_examples((inputs[:, 2], torch.zeros(10).long()), "validation", batch_size=4)
    with pytest.raises(DataError, match="for 2 of 10"):
        predict(nn.Identity(), single)


def test_no_examples():
    split = as_examples((X[:0], torch.zeros(0).long()), "test")
    with pytest.raises(DataError, match="no examples to predict"):
        predict(nn.Identity(), split)


def test_several_inputs_and_other_dtypes():
    pair = as_examples(((X, X), torch.zeros(10)), "test")
    assert torch.equal(predict(Gives(lambda a, b: a + b), pair), 2 * X)
    named = as_examples(({"a": X, "b": X}, torch.zeros(10)), "test")
    assert torch.equal(predict(Gives(lambda b, a: a - b), named), X - X)
    model = nn.Linear(3, 2).to(torch.bfloat16)
    double = as_examples((X.double(), torch.zeros(10)), "test")
    outputs = predict(model, double)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, model(X.bfloat16()).float().detach())


def test_large_outputs_are_memory_mapped_and_the_file_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outputs = predict(nn.Identity(), SPLIT, memory_limit=64)
    assert [file.suffix for file in tmp_path.iterdir()] == [".npy"]
    assert torch.equal(outputs, X)
    logs = log_probabilities(outputs, "logits", memory_limit=64)
    assert len(list(tmp_path.iterdir())) == 2
    torch.testing.assert_close(logs, F.log_softmax(X, 1))
    del outputs, logs
    assert list(tmp_path.iterdir()) == []
    room((4, 4), 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("outputs", "task", "kind"),
    [
        (X, "classification", "logits"),
        (X.softmax(1), "classification", "probabilities"),
        (X.softmax(1).bfloat16().float(), "classification", "probabilities"),
        (X.log_softmax(1), "classification", "logits"),
        (torch.eye(3), "classification", "probabilities"),
        (torch.cat([X.softmax(1), torch.ones(1, 3)]), "classification", "logits"),
        (torch.tensor([[1.5, -0.5]]), "classification", "logits"),
        (torch.tensor([0.2, 0.9]), "classification", "probabilities"),
        (torch.tensor([[0.2], [1.9]]), "classification", "logits"),
        (X[None], "tokens", "logits"),
        (X[None].softmax(2), "tokens", "probabilities"),
        (X, "regression", "values"),
        (X[:, 0], "regression", "values"),
    ],
)
def test_the_kind_is_found_out(outputs, task, kind):
    assert detect_kind(outputs, task) == kind


def test_every_row_counts_for_the_kind(monkeypatch):
    monkeypatch.setattr("alloykit.evaluation.predicting.BLOCK", 6)
    outputs = X.softmax(1)
    assert detect_kind(outputs, "classification") == "probabilities"
    outputs[9, 0] += 1
    assert detect_kind(outputs, "classification") == "logits"
    torch.testing.assert_close(log_probabilities(X, "logits"), F.log_softmax(X, 1))


@pytest.mark.parametrize(
    ("outputs", "task"), [(X[None], "classification"), (X, "tokens"), (X[:, 0], "tokens")]
)
def test_outputs_of_another_shape_than_the_task_are_refused(outputs, task):
    with pytest.raises(DataError, match=f"Outputs for {task} have the shape"):
        detect_kind(outputs, task)


def test_log_probabilities_of_logits_and_probabilities_agree():
    expected = F.log_softmax(X, 1)
    torch.testing.assert_close(log_probabilities(X, "logits"), expected)
    torch.testing.assert_close(log_probabilities(expected, "logits"), expected)
    torch.testing.assert_close(log_probabilities(expected.exp() * 1.003, "probabilities"), expected)
    assert log_probabilities(X, "values") is X


def test_log_probabilities_are_finite_where_probabilities_are_zero():
    certain = log_probabilities(torch.eye(2), "probabilities")
    assert torch.isfinite(certain).all()
    assert certain.diagonal().tolist() == [0, 0]
    masked = log_probabilities(torch.tensor([[0.0, -float("inf")]]), "logits")
    assert masked.tolist() == [[0.0, -1e4]]
    assert (0 * masked).sum() == 0


def test_a_single_output_becomes_two_classes():
    z = torch.tensor([2.0, -1.0])
    expected = torch.stack([torch.sigmoid(-z), torch.sigmoid(z)], 1)
    for single in (z, z[:, None]):
        torch.testing.assert_close(log_probabilities(single, "logits").exp(), expected)
    p = torch.sigmoid(z)
    torch.testing.assert_close(log_probabilities(p, "probabilities").exp(), expected)
