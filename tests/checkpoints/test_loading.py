from __future__ import annotations

import pytest
import torch
from torch import nn

import alloykit
from alloykit.checkpoints.loading import load_state, state_dict
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight


def test_tied_names_share_one_tensor_in_memory_and_from_a_file(tmp_path):
    path = alloykit.save_checkpoint(Tied(), tmp_path / "tied.safetensors")
    torch.save(Tied().state_dict(), tmp_path / "tied.pt")
    for source in (Tied(), path, tmp_path / "tied.pt"):
        state = state_dict(open_checkpoint(source))
        assert state["embed.weight"] is state["head.weight"]
        assert state["embed.weight"].shape == (3, 2)


def test_views_of_one_storage_are_not_mistaken_for_each_other(tmp_path):
    square = torch.arange(4.0).reshape(2, 2)
    given = {"w": square, "t": square.t(), "row": square[0], "flat": square.reshape(-1)}
    torch.save(given, tmp_path / "views.pt")
    for source in (given, tmp_path / "views.pt"):
        state = state_dict(open_checkpoint(source))
        assert all(torch.equal(state[name], given[name]) for name in given)


def test_a_state_is_copied_into_the_module():
    net, state = nn.Linear(2, 2), {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    load_state(net, state)
    state["weight"].fill_(7)
    assert net.weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert net.weight.requires_grad


def test_values_are_rounded_to_the_modules_dtype():
    net = nn.Linear(1, 1, bias=False).bfloat16()
    load_state(net, {"weight": torch.tensor([[1.0 + 2.0**-12]])})
    assert net.weight.item() == 1.0


def test_of_tied_names_one_is_enough():
    for name in ("embed.weight", "head.weight"):
        net = Tied()
        load_state(net, {name: torch.ones(3, 2)})
        assert net.embed.weight.sum() == 6


def test_a_transposed_view_does_not_stand_for_its_original():
    net = nn.Module()
    net.w = nn.Parameter(torch.zeros(2, 2))
    net.register_buffer("t", net.w.detach().t())
    with pytest.raises(CheckpointError, match="t   the model has it"):
        load_state(net, {"w": torch.ones(2, 2)})


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_a_wrapped_module_takes_plain_and_wrapped_names(wrap):
    for state in (nn.Linear(2, 2).state_dict(), wrap(nn.Linear(2, 2)).state_dict()):
        net = nn.Linear(2, 2)
        load_state(wrap(net), state)
        assert torch.equal(net.weight, next(iter(state.values())))


def test_everything_that_does_not_fit_is_listed_and_nothing_is_copied():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(3), "1.weight": torch.ones(2, 2),
             "extra": torch.ones(1)}  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        load_state(net, state)
    text = str(caught.value)
    assert "does not fit Sequential: 3 differences" in text
    assert "1.bias   the model has it, the checkpoint does not" in text
    assert "extra   the checkpoint has it, the model does not" in text
    assert "0.bias   model: [2]   checkpoint: [3]" in text
    assert "Check the architecture" in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_imaginary_parts_are_not_dropped():
    with pytest.raises(CheckpointError, match=r"   checkpoint: torch\.complex64"):
        load_state(nn.Linear(1, 1, bias=False), {"weight": torch.ones(1, 1, dtype=torch.complex64)})


def test_scalars_empty_and_non_persistent_buffers():
    net = nn.Module()
    net.register_buffer("scalar", torch.tensor(1))
    net.register_buffer("empty", torch.zeros(0, 3))
    net.register_buffer("scratch", torch.ones(2), persistent=False)
    load_state(net, {"scalar": torch.tensor(5), "empty": torch.zeros(0, 3)})
    assert net.scalar.item() == 5
    assert net.scratch.tolist() == [1.0, 1.0]


def test_an_unwrapped_checkpoint_loads_into_the_plain_module():
    wrapped = nn.DataParallel(nn.Linear(2, 2))
    net = nn.Linear(2, 2)
    load_state(net, state_dict(open_checkpoint(wrapped.state_dict())))
    assert torch.equal(net.weight, wrapped.module.weight)
    assert MemoryCheckpoint(net.state_dict(), "a").specs().keys() == {"weight", "bias"}
