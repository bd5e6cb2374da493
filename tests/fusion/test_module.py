"""A fusion's arithmetic, its frozen members, and its life as a file."""

from __future__ import annotations

import copy
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from plain_torch import assert_same_in_plain_torch
from torch import nn
from torch.testing import assert_close

from alloykit.checkpoints.exporting import load_exported, save_exported
from alloykit.errors import DataError, InvalidParameter, MissingInput, UnknownName
from alloykit.evaluation.freezing import frozen_view
from alloykit.fusion.head import HeadData, HeadShape
from alloykit.fusion.module import Fusion
from alloykit.fusion.stacking import stacking

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

SOURCE = """
import torch
from torch import nn

class Vanishing(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return {"logits": self.head(self.body(images).mean((2, 3)))}
"""


class Head(nn.Module):
    """Concatenates, and applies fixed weights; remembers what it was given."""

    def __init__(self, width, outputs, *, classes=True):
        super().__init__()
        torch.manual_seed(9)
        self.layer = nn.Linear(width, outputs)
        self.classes = classes

    def forward(self, members, context):
        rows = torch.cat([*members, *([] if context is None else [context])], dim=-1)
        found = self.layer(rows)
        return found.log_softmax(-1) if self.classes else found

    def attention(self, members, context):
        return torch.full((len(members[0]), len(members)), 1 / len(members))


def net(seed, outputs=3, **options):
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(5)
    norm.running_mean.normal_()
    return nn.Sequential(nn.Linear(4, 5), norm, nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, outputs))


def bytes_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_the_head_gets_log_probabilities_of_all_kinds_of_members():
    soft = nn.Sequential(net(1), nn.Softmax(-1))
    fusion = Fusion({"a": net(0), "b": soft}, Head(6, 3))
    logs = [net(0).eval()(X).log_softmax(-1), net(1).eval()(X).log_softmax(-1)]
    assert_close(fusion(X), fusion.head(logs, None))
    assert fusion.kinds == ("logits", "probabilities")
    assert_close(fusion.predict_proba(X).sum(-1), torch.ones(6))


def test_features_context_and_named_layers_reach_the_head():
    a, b = net(0), net(1, outputs=2)
    by_default = Fusion([a, b], Head(10, 3), source="features")
    hidden = [m.eval()[2](m[1](m[0](X))) for m in (a, b)]
    assert_close(by_default(X), by_default.head(hidden, None))
    assert by_default.layers == ("4:input", "4:input")
    named = Fusion({"a": a, "b": b}, Head(10, 3), source={"a": "0", "b": "2"})
    assert_close(named(X), named.head([a[0](X), hidden[1]], None))
    told = Fusion([a, b], Head(15, 3), source="features", context="features")
    wide = Fusion([a, a], Head(16, 3), context="features")
    assert_close(wide(X), wide.head([a(X).log_softmax(-1)] * 2, torch.cat([hidden[0]] * 2, 1)))
    inputs = Fusion([a, a], Head(10, 3), context="inputs")
    assert_close(inputs(X), inputs.head([a(X).log_softmax(-1)] * 2, X))
    assert told.context == "features"


def test_tokens_are_rows_and_come_back_as_positions():
    torch.manual_seed(0)
    members = [nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)) for _ in range(2)]
    ids = torch.randint(0, 7, (2, 5))
    fusion = Fusion(members, Head(6, 3), task="tokens")
    logs = [m(ids).log_softmax(-1) for m in members]
    assert fusion(ids).shape == (2, 5, 3)
    assert_close(fusion(ids)[1, 2], fusion.head([log[1, 2:3] for log in logs], None)[0])
    hidden = Fusion(members, Head(8, 3), task="tokens", source="features")
    assert hidden(ids).shape == (2, 5, 3)
    weights = torch.rand(2, 3)

    class Two(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, ids, extra):
            return self.inner(ids)

    spread = Fusion([Two(m) for m in members], Head(9, 3), task="tokens", context="inputs")
    expected = spread.head([log[1, 2:3] for log in logs], weights[1:])
    assert_close(spread(ids, weights)[1, 2], expected[0])


def test_regression_keeps_the_shape_of_the_members():
    class Flat(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.inner = net(seed, 1)

        def forward(self, x):
            return self.inner(x)[:, 0]

    fusion = Fusion([Flat(0), Flat(1)], Head(2, 1, classes=False), task="regression")
    assert fusion(X).shape == (6,)
    both = Fusion([net(0, 2), net(1, 2)], Head(4, 2, classes=False), task="regression")
    assert_close(both(X), both.head([net(0, 2).eval()(X), net(1, 2).eval()(X)], None))
    with pytest.raises(InvalidParameter, match="no probabilities"):
        both.predict_proba(X)


def test_dictionaries_objects_and_members_of_other_dtypes():
    class Named(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, values, mask=None):
            return SimpleNamespace(logits=self.inner(values))

    fusion = Fusion([Named(net(0)), Named(net(1).double())], Head(6, 3))
    assert_close(fusion(values=X, mask=None), fusion(X.double()))
    assert fusion(X).dtype == torch.float32


def test_members_and_head_stay_in_evaluation_mode_and_nothing_requires_gradients():
    members = [net(0), net(1)]
    before = [bytes_of(m) for m in members]
    fusion = Fusion(members, Head(6, 3)).train()
    x = X.clone().requires_grad_()
    first = fusion(x)
    assert fusion.training
    assert not any(m.training for m in fusion.members.modules())
    assert not first.requires_grad
    assert not any(p.requires_grad for p in fusion.parameters())
    assert_close(fusion(x), first)
    for member, kept in zip(members, before, strict=True):
        for name, tensor in member.state_dict().items():
            assert torch.equal(tensor, kept[name]), name


def test_a_frozen_view_leaves_the_callers_module_alone():
    member = net(0).train()
    fusion = Fusion([frozen_view(member), frozen_view(net(1))], Head(6, 3))
    fusion(X)
    assert member.training
    assert all(p.requires_grad for p in member.parameters())
    assert member[0].weight.data_ptr() == fusion.members[0][0].weight.data_ptr()


def test_the_head_stays_in_float32_when_cast_and_under_autocast():
    fusion = Fusion([net(0), net(1)], Head(6, 3))
    expected = fusion(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fusion(X).dtype == torch.float32
    weights = fusion.head.layer.weight.clone()
    fusion.to(torch.bfloat16)
    assert fusion.members[0][0].weight.dtype == torch.bfloat16
    assert torch.equal(fusion.head.layer.weight, weights)
    assert_close(fusion(X), expected, rtol=0.1, atol=0.1)
    assert fusion(X).dtype == torch.float32


def test_copies_and_state_travel():
    fusion = Fusion([net(0), net(1)], Head(6, 3), source="outputs")
    other = Fusion([net(5), net(6)], Head(6, 3))
    other.load_state_dict(fusion.state_dict())
    assert_close(other(X), fusion(X))
    assert_close(copy.deepcopy(fusion)(X), fusion(X))
    assert_close(fusion.without_unused()(X), fusion(X))
    assert fusion.without_unused().members[0] is fusion.members[0]


def test_attention_is_the_heads():
    fusion = Fusion([net(0), net(1)], Head(6, 3))
    assert fusion.attention(X).tolist() == [[0.5, 0.5]] * 6
    plain = Fusion([net(0)], nn.Identity())
    with pytest.raises(InvalidParameter, match="Identity has no attention"):
        plain.attention(X)


def test_what_it_is_made_of_is_json():
    made = {"head": "concat", "parameters": {"pull": 3.0}, "chosen": {"pull": 3.0}}
    fusion = Fusion({"a": net(0), "b": net(1)}, Head(10, 3), source="features", made=made)
    fusion(X)
    told = json.loads(json.dumps(fusion.description()))
    assert told["head"] == "concat"
    assert told["members"] == ["a", "b"]
    assert told["layers"] == ["4:input", "4:input"]


@pytest.mark.parametrize("source", ["outputs", "features"])
def test_a_saved_fusion_runs_where_neither_alloykit_nor_the_members_source_exists(
    source, tmp_path, monkeypatch
):
    (tmp_path / "vanished_member.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    from vanished_member import Vanishing

    torch.manual_seed(1)
    images = torch.randn(6, 1, 8, 8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    members = {"conv": Vanishing(0), "flat": flat}
    width = 6 if source == "outputs" else 9
    fusion = Fusion(members, Head(width + 64, 3), source=source, context="inputs")
    save_exported(fusion, tmp_path / "both.pt2", images)
    expected = fusion(images)
    assert_close(load_exported(tmp_path / "both.pt2")(images), expected, rtol=0, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in fusion.modules())
    if source == "outputs":
        return
    (tmp_path / "vanished_member.py").unlink()
    monkeypatch.delitem(sys.modules, "vanished_member")
    assert_same_in_plain_torch(tmp_path / "both.pt2", images, expected, "vanished_member")


def test_mistakes_are_listed_at_once():
    members = {"a": net(0), "b": net(1)}
    with pytest.raises(InvalidParameter) as caught:
        Fusion(members, Head(6, 3), source={"a": "0", "c": "0"}, context="none", kinds=["logits"])
    text = str(caught.value)
    for part in ("no layer for b", "'c', which is no member", "1 kinds were given for 2"):
        assert part in text
    with pytest.raises(InvalidParameter, match="must be 'none', 'inputs' or 'features'"):
        Fusion(members, Head(6, 3), context="input")
    with pytest.raises(UnknownName, match="The member 'b' has no layer 'hidden'"):
        Fusion(members, Head(6, 3), source={"a": "0", "b": "hidden"})
    with pytest.raises(MissingInput, match="at least one member"):
        Fusion({}, Head(6, 3))


def test_members_that_read_other_rows_are_refused():
    class Half(nn.Module):
        def forward(self, x):
            return x[::2, :3]

    fusion = Fusion({"a": net(0), "b": Half()}, Head(6, 3), kinds=["logits", "logits"])
    with pytest.raises(DataError, match="different numbers of rows"):
        fusion(X)
    words = Fusion([nn.Embedding(7, 3)], Head(7, 3), context="inputs", task="tokens")
    with pytest.raises(DataError, match="reads floating inputs"):
        words.rows(torch.zeros(2, 4, dtype=torch.long))


def test_a_head_in_float64_stays_so_whatever_the_members_are_cast_to():
    torch.manual_seed(0)
    members = tuple(torch.randn(3, 60, 3).log_softmax(-1))
    data, shape = HeadData(members, torch.arange(60) % 3), HeadShape((3,) * 3, 3, "classification")
    head = stacking().fit(data, shape).module
    fusion = Fusion([nn.Linear(4, 3) for _ in range(3)], head).bfloat16()
    assert {p.dtype for p in fusion.head.parameters()} == {torch.float64}
    assert {p.dtype for p in fusion.members.parameters()} == {torch.bfloat16}
    assert fusion(torch.randn(5, 4)).dtype == torch.float32
