from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alloykit.data.examples import as_examples
from alloykit.errors import DataError, MissingInput
from alloykit.evaluation import gram
from alloykit.evaluation.gram import calls_of_layers, gram_matrices, linear_layers


def split(*shape, batch_size=3):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x, as_examples((x, torch.zeros(len(x))), "train", batch_size=batch_size)


def of(rows):
    wide = rows.double()
    return (wide.T @ wide / len(wide)).float()


def test_every_linear_layer_has_that_of_its_own_inputs():
    torch.manual_seed(0)
    x, data = split(7, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    found = gram_matrices(model, data)
    assert list(found) == ["0.weight", "3.weight"]
    torch.testing.assert_close(found["0.weight"], of(x))
    torch.testing.assert_close(found["3.weight"], of(model[0](x).relu().detach()))
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_every_position_is_a_row():
    x, data = split(5, 3, 4)
    torch.testing.assert_close(
        gram_matrices(nn.Sequential(nn.Linear(4, 2)), data)["0.weight"], of(x.reshape(-1, 4))
    )


CONVOLUTIONS = [
    (nn.Conv2d(2, 3, 3), (5, 2, 6, 7)),
    (nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (5, 2, 6, 7)),
    (nn.Conv2d(2, 3, 3, padding="same"), (5, 2, 6, 7)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (5, 2, 6, 7)),
    (nn.Conv1d(3, 4, 3, stride=2, padding=2), (4, 3, 9)),
    (nn.Conv3d(2, 3, 2, stride=2), (3, 2, 4, 5, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda item: str(item))
def test_a_convolution_is_a_linear_layer_of_its_patches(layer, shape):
    x, _ = split(*shape)
    rows = torch.cat(list(gram._rows_of(layer, x)))
    outputs = rows @ layer.weight.reshape(len(layer.weight), -1).T + layer.bias
    expected = layer(x).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(outputs, expected)


def test_patches_are_laid_out_a_few_examples_at_a_time(monkeypatch):
    layer = nn.Conv2d(2, 3, 3)
    x, data = split(5, 2, 6, 7)
    whole = gram_matrices(nn.Sequential(layer), data)["0.weight"]
    monkeypatch.setattr(gram, "PATCH_BYTES", 1)
    assert len(list(gram._rows_of(layer, x))) == 5
    torch.testing.assert_close(gram_matrices(nn.Sequential(layer), data)["0.weight"], whole)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.step, self.never = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.step(input=self.step(x)))


def test_a_layer_that_is_called_twice_counts_both_and_one_never_called_is_missing():
    torch.manual_seed(0)
    x, data = split(6, 4)
    model = Twice()
    found = gram_matrices(model, data)
    assert set(found) == {"last.weight", "step.weight"}
    both = torch.cat([x, model.step(x).detach()])
    torch.testing.assert_close(found["step.weight"], of(both))
    assert calls_of_layers(model, data) == ["step", "step", "last"]


def test_it_runs_no_further_than_asked():
    x, data = split(6, 4)
    model = Twice()
    model.last.register_forward_pre_hook(lambda *_: pytest.fail("the run went on"))
    found = gram_matrices(model, data, layers=["step"], stop_after=1)
    torch.testing.assert_close(found["step.weight"], of(x))
    assert list(found) == ["step.weight"]


def test_which_layers_have_a_matrix():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "conv": nn.Conv2d(4, 4, 1),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "transposed": nn.ConvTranspose2d(4, 4, 2),
            "table": nn.Embedding(4, 4),
            "norm": nn.LayerNorm(4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        }
    )
    assert list(linear_layers(model)) == ["linear", "conv"]


def test_transformer_layers_are_seen_in_spite_of_their_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    _, data = split(3, 5, 8)
    assert set(gram_matrices(layer, data)) == {"linear1.weight", "linear2.weight"}


def test_half_precision_inputs_are_multiplied_in_float32():
    x, data = split(300, 4, batch_size=300)
    model = nn.Sequential(nn.Linear(4, 2)).bfloat16()
    torch.testing.assert_close(gram_matrices(model, data)["0.weight"], of(x.bfloat16().float()))


def test_a_wrapped_model_gives_the_names_inside():
    _, data = split(5, 4)
    model = nn.Sequential(nn.Linear(4, 2))
    wrapped = nn.DataParallel(copy.deepcopy(model))
    torch.testing.assert_close(gram_matrices(wrapped, data), gram_matrices(model, data))


def test_it_tells_how_far_it_is():
    told = []
    _, data = split(7, 4)
    gram_matrices(nn.Sequential(nn.Linear(4, 2)), data, progress=lambda *how: told.append(how))
    assert told == [("Gram matrices", done, 7) for done in (3, 6, 7)]


def test_what_cannot_be_done_is_said():
    _, data = split(5, 4)
    with pytest.raises(MissingInput, match="Sequential called no linear or convolutional layer"):
        gram_matrices(nn.Sequential(nn.LayerNorm(4)), data)
    with pytest.raises(DataError, match=r"The inputs of 0\.weight|The inputs of 0 are not finite"):
        gram_matrices(
            nn.Sequential(nn.Linear(4, 2)), as_examples((torch.full((2, 4), 1e30), [0, 0]), "train")
        )
    hooks = nn.Sequential(nn.Linear(4, 2), nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gram_matrices(hooks, data)
    assert not any(layer._forward_pre_hooks for layer in hooks)
