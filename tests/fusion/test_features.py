"""Layers inside of members: found by running, seen by hooks that are gone afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from alloykit.errors import DataError, UnknownName
from alloykit.fusion.features import feature_rows, last_layer, layer_names, watching


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Functional(nn.Module):
    """A head that is no module: the parent's own parameter."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        return F.linear(torch.relu(self.body(x)), self.head)


class Classifier(nn.Module):
    """As transformers do: logits in an object, tokens pooled inside, a token of its own."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.score = nn.Linear(8, 3, bias=False)

    def forward(self, input_ids):
        tokens = torch.cat([self.token.expand(len(input_ids), -1, -1), self.embed(input_ids)], 1)
        return SimpleNamespace(logits=self.score(self.norm(tokens)[:, 0]))


class Pooled(nn.Module):
    """A convolution as the head, averaged over space."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1)

    def forward(self, images):
        return self.head(self.body(images)).mean((2, 3))


def found(model, inputs):
    model.eval()
    given = lambda: getattr(out := model(inputs), "logits", out)  # noqa: E731
    return last_layer(model, given)


def test_the_input_of_the_head_is_found_whatever_the_head_is():
    x = torch.randn(2, 4)
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(-1))
    assert found(plain, x) == "2:input"
    assert found(Classifier(), torch.tensor([[1, 2], [3, 4]])) == "score:input"
    assert found(Pooled(), torch.randn(2, 1, 6, 6)) == "head:input"
    assert hooks(plain) == 0


def test_a_functional_head_leaves_the_output_of_the_last_layer():
    assert found(Functional(), torch.randn(2, 4)) == "body"


def test_a_module_without_layers_says_so():
    with pytest.raises(DataError, match="calls no layer that owns parameters"):
        found(nn.Sequential(nn.Flatten()), torch.zeros(2, 3))


def test_watched_values_are_what_the_layer_gave_and_was_given():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(3, 4)
    with watching(model, ["0", "2:input", "2"]) as seen:
        output = model(x)
        assert hooks(model) == 3
    assert hooks(model) == 0
    assert_close(seen["0"], model[0](x))
    assert_close(seen["2:input"], model[0](x).relu())
    assert_close(seen["2"], output)


def test_hooks_are_gone_after_a_failure_too():
    model = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(RuntimeError), watching(model, ["0"]):
        model(torch.zeros(2, 3))
    assert hooks(model) == 0


def test_unknown_layers_list_the_names_nearest_first():
    model = nn.ModuleDict({"encoder": nn.Linear(1, 1), "head": nn.Linear(1, 1), "x": nn.ReLU()})
    assert layer_names(model) == ["encoder", "head", "x"]
    with pytest.raises(UnknownName) as caught, watching(model, ["haed"]):
        pass
    lines = str(caught.value).splitlines()
    assert "has no layer 'haed'. All 3, nearest first:" in lines[0]
    assert lines[1:3] == ["  head", "  encoder"]
    with pytest.raises(UnknownName, match="has no layers inside"), watching(nn.ReLU(), ["a"]):
        pass


def test_maps_are_averaged_over_space_and_tokens_become_rows():
    model = nn.ModuleDict({"conv": nn.Conv1d(2, 4, 3), "norm": nn.LayerNorm(5), "act": nn.ReLU()})
    maps, tokens = torch.randn(2, 4, 5), torch.randn(2, 3, 5)
    assert_close(feature_rows(model, "conv", maps, "classification"), maps.mean(2))
    assert_close(feature_rows(model, "norm", tokens, "classification"), tokens.mean(1))
    assert_close(feature_rows(model, "act", tokens, "tokens"), tokens.reshape(6, 5))
    images = torch.randn(2, 3, 4, 5)
    assert_close(feature_rows(model, "act", images, "classification"), images.mean((2, 3)))
    last = feature_rows(model, "norm:input", images, "classification")
    assert_close(last, images.mean((1, 2)))
    single = feature_rows(model, "act", torch.arange(3.0), "regression")
    assert single.tolist() == [[0.0], [1.0], [2.0]]


def test_a_layer_that_gives_no_tensor_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return "text"

    model = nn.Sequential(Odd())
    with pytest.raises(DataError, match="'0' has no tensor to give: str"), watching(model, ["0"]):
        model(torch.zeros(1))


def test_layers_of_lstm_give_their_first_tensor():
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    with watching(model, ["0"]) as seen:
        output, _ = model(torch.zeros(2, 5, 3))
    assert_close(seen["0"], output)
