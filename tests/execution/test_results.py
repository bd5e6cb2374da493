from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from alloykit.errors import InvalidParameter
from alloykit.execution.results import in_form_of


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(4))
        self.register_buffer("scratch", torch.full((2,), 5.0), persistent=False)


def doubled(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() * 2 for name, tensor in module.state_dict().items()}


def test_a_module_comes_back_as_another_module_of_its_class():
    module = Tied()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = in_form_of(module, doubled(module))
    assert type(result) is Tied
    assert torch.equal(result.embed.weight, 2 * before["embed.weight"])
    assert result.head.weight is result.embed.weight
    assert result.steps.item() == 8
    assert torch.equal(result.scratch, module.scratch)
    assert result.embed.weight.requires_grad
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


def test_a_module_takes_the_dtypes_of_the_result():
    module = Tied().half()
    result = in_form_of(module, {n: t.float() for n, t in module.state_dict().items()})
    assert result.embed.weight.dtype == torch.float32
    assert result.head.weight is result.embed.weight
    assert module.embed.weight.dtype == torch.float16


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled])
def test_a_wrapped_module_comes_back_wrapped(wrap):
    net = nn.Linear(2, 2)
    result = in_form_of(wrap(net), doubled(net))
    assert torch.equal(result.state_dict()[next(iter(wrap(net).state_dict()))], 2 * net.weight)
    assert type(result) is type(wrap(net))


def test_gradients_and_modes_are_those_of_a_copy():
    net = nn.Sequential(nn.Linear(2, 1), nn.Dropout()).eval()
    net[0].weight.requires_grad_(False)
    net(torch.ones(1, 2)).sum().backward()
    result = in_form_of(net, doubled(net))
    assert not result.training
    assert not result[0].weight.requires_grad
    assert result[0].bias.grad is None


def test_parametrised_and_shared_submodules_are_kept():
    shared = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    net = nn.Sequential(shared, nn.ReLU(), shared)
    result = in_form_of(net, {name: t.clone() for name, t in net.state_dict().items()})
    assert result[0] is result[2]
    assert torch.equal(result(torch.ones(1, 2)), net(torch.ones(1, 2)))


class WithExtraState(nn.Linear):
    def get_extra_state(self):
        return {"scale": 3}

    def set_extra_state(self, state):
        self.extra = state


def test_extra_state_that_is_no_tensor_is_left_to_the_copy():
    net = WithExtraState(2, 2)
    merged = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    assert in_form_of(net, merged).weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_state_dicts_come_back_with_their_names_in_their_order():
    given = OrderedDict(b=torch.ones(1), a=torch.ones(1))
    result = in_form_of(given, {"a": torch.zeros(1), "b": torch.ones(1)})
    assert list(result) == ["b", "a"]
    wrapped = {f"module.{name}": tensor for name, tensor in given.items()}
    assert list(in_form_of(wrapped, {"a": torch.zeros(1), "b": torch.ones(1)})) == [
        "module.b",
        "module.a",
    ]


def test_arrays_come_back_as_arrays_one_by_one():
    given = {"w": np.ones((2, 2), np.float16), "t": torch.ones(1), "s": np.float64(3.0)}
    merged = {"w": torch.zeros(2, 2).half(), "t": torch.zeros(1), "s": torch.tensor(1.0).double()}
    result = in_form_of(given, merged)
    assert isinstance(result["w"], np.ndarray)
    assert result["w"].dtype == np.float16
    assert isinstance(result["t"], torch.Tensor)
    assert isinstance(result["s"], np.ndarray)


def test_lists_come_back_as_lists_in_their_order():
    given = (np.zeros(1), torch.zeros(1), *[np.zeros(1)] * 10)
    merged = {str(index): torch.tensor([float(index)]) for index in range(12)}
    result = in_form_of(given, merged)
    assert isinstance(result, list)
    assert [float(value[0]) for value in result] == [float(index) for index in range(12)]
    assert isinstance(result[1], torch.Tensor)
    assert isinstance(result[11], np.ndarray)


def test_files_come_back_as_a_state_dict():
    merged = {"w": torch.zeros(1)}
    assert in_form_of("model.safetensors", merged) == merged


def test_numpy_has_no_bfloat16():
    with pytest.raises(InvalidParameter, match=r"NumPy has no torch\.bfloat16.*another dtype"):
        in_form_of([np.zeros(1)], {"0": torch.zeros(1).bfloat16()})
