import pytest
import torch
from torch import nn

from alloykit.errors import DataError, InvalidParameter
from alloykit.evaluation.costs import measure, peak_bytes, tensors_of


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("same", self.embed.weight.detach())

    def forward(self, x):
        return self.head(self.embed(x))


def test_tied_parameters_count_once_and_buffers_count():
    found = measure(Tied(), torch.zeros(2, dtype=torch.long), forward_passes=3)
    assert found.parameters == 43
    assert found.bytes == 4 * 43
    assert found.forward_passes == 3
    assert found.latency > 0
    assert measure(Tied(), torch.zeros(2).long(), bytes_on_disk=7).bytes == 7


def test_bytes_follow_the_dtype_and_empty_tensors_are_kept_apart():
    assert measure(nn.Linear(3, 2).bfloat16(), torch.zeros(4, 3)).bytes == 16
    model = nn.Module()
    model.a, model.b = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(0))
    assert len(tensors_of(model)) == 2


def test_peak_memory_by_hand():
    model = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 1))
    inputs = torch.zeros(5, 8)
    resident = 4 * (8 * 100 + 100 + 100 + 1 + 5 * 8)
    with torch.no_grad():
        # The ReLU's input and output live at once; the last layer's single column is smaller.
        assert peak_bytes(model, inputs) == resident + 2 * 4 * 5 * 100


def test_views_and_freed_tensors_do_not_add_up():
    class Views(nn.Module):
        def forward(self, x):
            for _ in range(10):
                y = (x + 1).view(-1)[:5].reshape(5, 1)
                del y
            return x

    assert peak_bytes(Views(), torch.zeros(100)) == 2 * 400


def test_measuring_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure(model, torch.randn(4, 3))
    assert model.training
    assert model[1].training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_the_latency_is_the_shortest_per_example(monkeypatch):
    seconds = iter([5.0, 3.0, 2.0, 8.0, 3.0])
    monkeypatch.setattr("alloykit.evaluation.costs._seconds", lambda *_: next(seconds))
    assert measure(nn.Linear(3, 2), torch.zeros(4, 3), repeats=5).latency == 2.0 / 4


def test_parameters_out_of_range():
    with pytest.raises(InvalidParameter, match=r"at least 1 repeat\. Got 0"):
        measure(nn.Linear(3, 2), torch.zeros(4, 3), repeats=0)
    with pytest.raises(DataError, match="at least one example"):
        measure(nn.Linear(3, 2), torch.zeros(0, 3))
