"""Fine-tuning moves copies: of the head alone, or of the members with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alloykit.data.examples import as_examples
from alloykit.errors import DataError, InvalidParameter
from alloykit.fusion.finetuning import finetune_fusion
from alloykit.fusion.module import Fusion
from alloykit.training.rows import Rows
from alloykit.training.scoring import validation_loss
from alloykit.training.settings import Training


class Head(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        torch.manual_seed(9)
        self.layer = nn.Linear(6, outputs)
        self.drop = nn.Dropout(0.5)
        self.modes = set()

    def forward(self, members, context):
        self.modes.add(self.training)
        return self.layer(torch.cat([m.exp() for m in members], -1)).log_softmax(-1)


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def rows(count=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return Rows(x, x[:, :3].argmax(1))


def loss(fusion, data):
    return float(nn.functional.nll_loss(fusion(data.inputs), data.targets))


def test_members_and_head_move_in_a_copy_and_batch_norm_does_not():
    fusion = Fusion([net(0), net(1)], Head())
    before = copy.deepcopy(fusion.state_dict())
    data = rows()
    tuned, history = finetune_fusion(
        fusion, data, Training(epochs=10, batch_size=10, learning_rate=1e-2)
    )
    for name, tensor in fusion.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    moved = {n for n, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved == {name for name, _ in fusion.named_parameters()}
    assert loss(tuned, data) < loss(fusion, data) - 0.1
    assert len(history.epochs) == 10
    assert not any(p.requires_grad for p in tuned.parameters())
    assert not any(module.training for module in tuned.members.modules())
    assert tuned.head.modes == {True, False}


def test_the_head_alone_moves_where_members_are_left():
    fusion = Fusion([net(0), net(1)], Head())
    calls = []

    def augment(inputs):
        calls.append(len(inputs))
        return inputs + 0.1 * torch.randn_like(inputs)

    tuned, _ = finetune_fusion(
        fusion, rows(), Training(epochs=3, batch_size=20), members=False, augment=augment
    )
    assert calls == [20] * 9
    assert not torch.equal(tuned.head.layer.weight, fusion.head.layer.weight)
    for one, other in zip(tuned.members.parameters(), fusion.members.parameters(), strict=True):
        assert torch.equal(one, other)


def test_validation_keeps_the_best_epoch():
    fusion = Fusion([net(0), net(1)], Head())
    data = rows()
    split = as_examples((data.inputs, data.targets), "validation")
    _, history = finetune_fusion(
        fusion, data, Training(epochs=3), validation=validation_loss(split, "classification")
    )
    assert history.best in (1, 2, 3)


def test_the_same_seed_gives_the_same_bits():
    fusion = Fusion([net(0), net(1)], Head())
    one, other = (finetune_fusion(fusion, rows(), Training(epochs=2))[0] for _ in range(2))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_heads_without_parameters_and_losses_that_are_not_finite():
    class Fixed(nn.Module):
        def forward(self, members, context):
            return members[0]

    with pytest.raises(InvalidParameter, match="Fixed has no parameters that gradients"):
        finetune_fusion(Fusion([net(0), net(1)], Fixed()), rows())
    fusion = Fusion([net(0), net(1)], Head())
    broken = Rows(torch.full((8, 4), torch.nan), torch.zeros(8, dtype=torch.long))
    with pytest.raises(DataError, match="loss became nan in epoch 1"):
        finetune_fusion(fusion, broken)
