"""The verb: whatever clients' data are given as, one model comes back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from alloykit.api.federating import federate
from alloykit.errors import DataError, DataLeak, InvalidParameter, MissingInput

INPUTS = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()
HELD = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
VALIDATION = (HELD, (HELD[:, 0] > 0).long())


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 2))


def part(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    return INPUTS[i::3], LABELS[i::3]


def bits(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def test_every_form_of_data_gives_the_same_bits_and_the_callers_model_is_left_alone():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    forms = [
        {str(i): part(i) for i in range(3)},
        {str(i): tuple(a.tolist() for a in part(i)) for i in range(3)},
        {str(i): TensorDataset(*part(i)) for i in range(3)},
        {str(i): DataLoader(TensorDataset(*part(i)), batch_size=4) for i in range(3)},
    ]
    found = [federate(model, form, rounds=2, validation=VALIDATION) for form in forms]
    for other in found[1:]:
        assert all(map(torch.equal, bits(found[0].model), bits(other.model)))
    assert model.training
    assert not found[0].model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_clients_in_order_are_numbered():
    found = federate(net(), [part(0), part(1)], rounds=1)
    assert found.history.rounds[0].clients == ("client 1", "client 2")


def test_a_blank_model_depends_on_the_seed():
    def built() -> nn.Module:
        return nn.Linear(3, 2)

    parts = [part(0), part(1)]
    one, same, other = (federate(built, parts, rounds=1, seed=s).model for s in (3, 3, 4))
    assert all(map(torch.equal, bits(one), bits(same)))
    assert not torch.equal(bits(one)[0], bits(other)[0])


def test_feddf_takes_inputs_alone():
    given = {"rounds": 2, "distillation": {"epochs": 2}, "validation": VALIDATION}
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    alone = federate(net(), [part(0), part(1)], unlabelled=inputs, **given)
    labelled = federate(
        net(), [part(0), part(1)], unlabelled=(inputs, torch.ones(40).long()), **given
    )
    assert all(map(torch.equal, bits(alone.model), bits(labelled.model)))
    plain = federate(net(), [part(0), part(1)], rounds=2)
    assert not torch.equal(bits(alone.model)[0], bits(plain.model)[0])


def test_more_settings_go_through():
    found = federate(net(), [part(i) for i in range(3)], rounds=4, clients_per_round=1, drop_out=0.5,
                     training={"epochs": 2, "momentum": 0.9})  # fmt: skip
    assert {len(r.clients) + len(r.record.left_out) for r in found.history.rounds} == {1}


@pytest.mark.parametrize(
    ("arguments", "given", "error", "text"),
    [
        ((net(), {}), {}, MissingInput, "at least one client"),
        ((net(), 3), {}, InvalidParameter, "Got a int"),
        ((7, [part(0)]), {}, InvalidParameter, "'model' must be a module"),
        ((net(), [part(0)]), {"task": "clasification"}, InvalidParameter, "Did you mean 'classification'"),
        ((net(), [part(0)]), {"fractoin": 0.5}, InvalidParameter, "'fractoin'. Did you mean 'fraction'"),
        ((net(), [part(0)]), {"rounds": 0}, InvalidParameter, "'rounds' must be a whole number of at least 1"),
        ((net(), {"a": part(0), "b": (INPUTS, LABELS + 1)}), {}, DataError, "(?s)The client b: .*outside 0 to 1"),
        ((net(), {"a": part(0), "b": (INPUTS[:0], LABELS[:0])}), {}, DataError, "(?s)The client b: .*no examples"),
        ((nn.Linear(9, 2), {"a": part(0)}), {}, DataError, "The client a: The model cannot be run"),
        ((net(), {"a": part(0), "b": VALIDATION}), {"validation": VALIDATION}, DataLeak, "The client b: train and validation share 30"),
        ((net(), [part(0)]), {"unlabelled": HELD, "validation": VALIDATION}, DataLeak, "The unlabelled data: train and"),
        ((net(), [part(0)]), {"distillation": {"epochs": 1}}, MissingInput, "'unlabelled' data is missing"),
        ((net().requires_grad_(False), [part(0)]), {}, InvalidParameter, "nothing to train"),
    ],
)  # fmt: skip
def test_mistakes(arguments, given, error, text):
    with pytest.raises(error, match=text):
        federate(*arguments, **given)
