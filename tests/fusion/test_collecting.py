"""What members say on a split, computed once, equals what the fusion's head is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alloykit.data.examples import as_examples
from alloykit.errors import DataError, UnknownName
from alloykit.fusion.collecting import collect, gather
from alloykit.fusion.module import Fusion

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


class Same(nn.Module):
    def forward(self, members, context):
        return members[0]


class Counted(nn.Module):
    def __init__(self, seed, outputs=3):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, outputs)
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return self.head(self.norm(self.body(x)))


def split(inputs=X, targets=Y, size=4):
    return as_examples((inputs, targets), "validation", batch_size=size)


@pytest.mark.parametrize("source", ["outputs", "features"])
@pytest.mark.parametrize("context", ["none", "inputs", "features"])
def test_collected_rows_are_those_of_the_module(source, context):
    members = {"a": Counted(0), "b": Counted(1)}
    data = collect(members, split(), source=source, context=context)
    fusion = Fusion(members, Same(), source=source, context=context)
    rows, described, _ = fusion.rows(X)
    for one, other in zip(data.members, rows, strict=True):
        assert_close(one, other.detach())
    assert (data.context is None) == (context == "none")
    if described is not None:
        assert_close(data.context, described.detach())
    assert torch.equal(data.targets, Y)
    again = collect(fusion, split())
    assert_close(again.members[1], data.members[1])


def test_every_member_sees_every_example_once_and_is_left_as_it_was():
    members = {"a": Counted(0).train(), "b": Counted(1)}
    before = {name: tensor.clone() for name, tensor in members["a"].state_dict().items()}
    gather(members, split())
    assert members["a"].rows == 10
    assert members["a"].training
    for name, tensor in members["a"].state_dict().items():
        assert torch.equal(tensor, before[name])
    gather(members, split(), source="features", context="features")
    assert members["a"].rows == 10 + 10 + 2


def test_shapes_say_what_a_head_must_be_built_for():
    members = {"a": Counted(0), "b": Counted(1, outputs=4)}
    found = gather(members, split(), context="inputs")
    assert found.shape.widths == (3, 4)
    assert (found.shape.outputs, found.shape.context, found.averages) == (4, 4, False)
    body = gather({"a": Counted(0)}, split(), source="features", classes=3)
    assert (body.shape.widths, body.shape.outputs, body.averages) == ((5,), 3, True)
    assert body.layers == ("head:input",)
    assert body.shape.source == "features"


def test_ignored_tokens_are_left_out():
    torch.manual_seed(0)
    member = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).eval()
    ids = torch.randint(0, 7, (3, 4))
    targets = torch.tensor([[0, 1, -100, 2], [-100, -100, 1, 1], [2, 2, 2, 0]])
    examples = split(ids, targets, size=2)
    found = gather({"m": member}, examples, task="tokens", source="features")
    kept = targets.flatten() != -100
    assert found.data.targets.tolist() == targets.flatten()[kept].tolist()
    assert found.owner.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert_close(found.outputs[0], member(ids).log_softmax(-1).flatten(0, 1)[kept].detach())
    assert_close(found.data.members[0], member[0](ids).flatten(0, 1)[kept].detach())


def test_single_outputs_regression_and_large_ones(tmp_path):
    found = gather({"m": Counted(0, outputs=1)}, split(targets=Y.clamp(max=1)))
    assert found.shape.widths == (2,)
    values = gather({"m": Counted(0, 2)}, split(targets=torch.randn(10, 2)), task="regression")
    assert values.data.targets.shape == (10, 2)
    assert values.shape.outputs == 2
    flat = gather({"m": Counted(0, 1)}, split(targets=torch.randn(10)), task="regression")
    assert flat.data.targets.shape == (10, 1)
    mapped = gather({"m": Counted(0)}, split(), memory_limit=0, context="inputs")
    assert_close(mapped.outputs[0], gather({"m": Counted(0)}, split()).outputs[0])


def test_dictionaries_are_collected():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, values):
            return {"logits": self.layer(values)}

    data = collect({"m": Named()}, split({"values": X}), context="features")
    assert_close(data.context, X)


def test_progress_tells_the_member():
    told = []
    gather({"m": Counted(0)}, split(), progress=lambda *step: told.append(step))
    assert told[-1] == ("running m", 10, 10)


def test_members_with_other_rows_are_refused_by_name():
    class Positions(nn.Module):
        def __init__(self, count):
            super().__init__()
            self.embed, self.count = nn.Embedding(7, 3), count

        def forward(self, ids):
            return self.embed(ids)[:, : self.count]

    examples = split(torch.randint(0, 7, (3, 4)), torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(DataError, match=r"different numbers of rows:\n  long: 12\n  short: 9"):
        gather({"long": Positions(4), "short": Positions(3)}, examples, task="tokens")
    with pytest.raises(DataError, match="give 9 positions, and there are 12 targets"):
        gather({"short": Positions(3)}, examples, task="tokens")


def test_bad_splits_and_layers_are_refused():
    with pytest.raises(DataError, match="cannot be used for classification"):
        gather({"m": Counted(0)}, split(targets=torch.randn(10)))
    with pytest.raises(UnknownName, match="The member 'm' has no layer 'hed'"):
        gather({"m": Counted(0)}, split(), source={"m": "hed"})


class Spare(Counted):
    """It has a layer that is never called, and one that says one thing for all positions."""

    def __init__(self, seed):
        super().__init__(seed)
        self.spare, self.whole = nn.Linear(1, 1), nn.Linear(4, 4)

    def forward(self, x):
        rows = self.whole(x.mean(1))[:, None] + x
        return self.head(self.body(rows))


def test_layers_that_were_not_called_or_do_not_speak_of_positions_are_refused():
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    tokens = as_examples((x, torch.arange(30).reshape(6, 5) % 3), "validation")
    members = {"a": Spare(0), "b": Spare(1)}
    with pytest.raises(DataError, match="'spare' was not called"):
        gather(members, tokens, task="tokens", source={"a": "spare", "b": "body"})
    with pytest.raises(DataError, match="gives 6 rows where the member gives 30"):
        gather(members, tokens, task="tokens", source={"a": "whole", "b": "body"})
    rows = gather(members, tokens, task="tokens", source={"a": "body", "b": "body"})
    assert rows.data.members[0].shape == (30, 5)
