from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alloykit.alignment import operations
from alloykit.alignment.deriving import permutation_groups
from alloykit.alignment.groups import PermutationGroups
from alloykit.alignment.permuting import drawn
from alloykit.alignment.proof import permute
from alloykit.errors import AlignmentError, DataError


def places(groups: PermutationGroups, name: str) -> list[tuple[str, int, int]]:
    return [(place.tensor, place.dimension, place.stride) for place in groups[name].axes]


def sizes(groups: PermutationGroups) -> dict[str, int]:
    return {group.name: group.size for group in groups.groups}


def require_same_outputs(model, inputs, groups, seed=3):
    """An independent check, with the model's own weights: no noise, no float64."""
    model.eval()
    with torch.no_grad():
        before = model(inputs)
        permute(model, groups, drawn(groups, seed))
        torch.testing.assert_close(model(inputs), before, rtol=1e-4, atol=1e-5)


def test_mlp():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    groups = permutation_groups(model, torch.randn(2, 4))
    assert places(groups, "0") == [("0.weight", 0, 1), ("0.bias", 0, 1), ("2.weight", 1, 1)]
    assert places(groups, "2") == [("2.weight", 0, 1), ("2.bias", 0, 1), ("4.weight", 1, 1)]
    assert sizes(groups) == {"0": 8, "2": 6}
    assert groups.unknown == ()
    require_same_outputs(model, torch.randn(5, 4), groups)


def test_cnn_with_batch_norm_and_flatten():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(), nn.Linear(8 * 16, 5),
    )  # fmt: skip
    model(torch.randn(8, 3, 8, 8))
    groups = permutation_groups(model, torch.randn(2, 3, 8, 8))
    assert places(groups, "0") == [
        ("0.weight", 0, 1), ("0.bias", 0, 1), ("1.weight", 0, 1), ("1.bias", 0, 1),
        ("1.running_mean", 0, 1), ("1.running_var", 0, 1), ("6.weight", 1, 16),
    ]  # fmt: skip
    assert groups.buffers == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    require_same_outputs(model, torch.randn(4, 3, 8, 8), groups)


class Residual(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, padding=1)
        self.apart = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.second(F.relu(self.norm(self.first(x))))
        return self.head(F.relu(self.apart(x)).mean((2, 3)))


def test_residual_sums_join_their_writers_and_depthwise_layers_keep_channels():
    model = Residual(groups=8)
    groups = permutation_groups(model, torch.randn(2, 3, 6, 6))
    assert sizes(groups) == {"stem": 8, "first": 4}
    stream = places(groups, "stem")
    assert {("stem.weight", 0, 1), ("second.weight", 0, 1), ("first.weight", 1, 1)} < {*stream}
    assert {("apart.weight", 0, 1), ("head.weight", 1, 1)} < {*stream}
    require_same_outputs(model, torch.randn(2, 3, 6, 6), groups)


def test_grouped_convolutions_permute_groups_and_channels_inside_of_them():
    model = Residual(groups=2)
    groups = permutation_groups(model, torch.randn(2, 3, 6, 6))
    assert sizes(groups) == {
        "stem (blocks of 4)": 2, "stem (inside blocks of 4)": 4, "first": 4,
        "apart (inside blocks of 4)": 4,
    }  # fmt: skip
    assert ("apart.weight", 0, 4) in places(groups, "stem (blocks of 4)")
    assert ("apart.weight", 1, 1) in places(groups, "stem (inside blocks of 4)")
    require_same_outputs(model, torch.randn(2, 3, 6, 6), groups)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, shared: int, rotary: bool):
        super().__init__()
        self.heads, self.shared, self.rotary, self.dims = heads, shared, rotary, width // heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, shared * self.dims)
        self.v = nn.Linear(width, shared * self.dims)
        self.o = nn.Linear(width, width)

    def forward(self, x):
        batch, steps, width = x.shape
        q, k, v = (
            layer(x).view(batch, steps, heads, self.dims).transpose(1, 2)
            for layer, heads in ((self.q, self.heads), (self.k, self.shared), (self.v, self.shared))
        )
        if self.rotary:
            angle = torch.arange(steps)[:, None] * torch.arange(1, self.dims + 1) * 0.1
            q, k = turned(q, angle), turned(k, angle)
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.heads != self.shared
        )
        return self.o(out.transpose(1, 2).reshape(batch, steps, width))


def turned(x, angle):
    half = x.shape[-1] // 2
    return x * angle.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angle.sin()


class Transformer(nn.Module):
    def __init__(self, shared: int = 4, rotary: bool = False, tied: bool = True):
        super().__init__()
        self.embed = nn.Embedding(11, 24)
        self.norm = nn.LayerNorm(24)
        self.attention = Attention(24, 4, shared, rotary)
        self.gate, self.up, self.down = nn.Linear(24, 10), nn.Linear(24, 10), nn.Linear(10, 24)
        self.head = nn.Linear(24, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


TOKENS = torch.arange(10).reshape(2, 5)
HEADS, INSIDE = "attention.q (blocks of 6)", "attention.q (inside blocks of 6)"


def test_transformer_with_tied_embeddings():
    model = Transformer()
    groups = permutation_groups(model, TOKENS)
    assert sizes(groups) == {
        "embed": 24, HEADS: 4, INSIDE: 6, "attention.v (inside blocks of 6)": 6, "gate": 10
    }  # fmt: skip
    assert {("embed.weight", 1, 1), ("head.weight", 1, 1)} < {*places(groups, "embed")}
    assert places(groups, HEADS)[-1] == ("attention.o.weight", 1, 6)
    assert places(groups, INSIDE) == [
        ("attention.q.weight", 0, 1), ("attention.q.bias", 0, 1),
        ("attention.k.weight", 0, 1), ("attention.k.bias", 0, 1),
    ]  # fmt: skip
    require_same_outputs(model, TOKENS, groups)
    assert model.head.weight is model.embed.weight


def test_dimensions_have_an_order_in_every_head():
    groups = permutation_groups(Transformer(), TOKENS)
    assert {g.name: g.within for g in groups.groups if g.within} == {
        INSIDE: HEADS, "attention.v (inside blocks of 6)": HEADS
    }  # fmt: skip


def test_heads_that_share_keys_and_values():
    model = Transformer(shared=2, tied=False)
    groups = permutation_groups(model, TOKENS)
    found = sizes(groups)
    assert (found["attention.q (blocks of 12)"], found[HEADS], found[INSIDE]) == (2, 2, 6)
    assert ("attention.k.weight", 0, 6) in places(groups, "attention.q (blocks of 12)")
    assert {g.within for g in groups.groups if g.size in (2, 6)} == {
        "", "attention.q (blocks of 12)"
    }  # fmt: skip
    assert [place[0] for place in places(groups, HEADS)] == [
        "attention.q.weight", "attention.q.bias", "attention.o.weight"
    ]  # fmt: skip
    require_same_outputs(model, TOKENS, groups)


class Mixing(nn.Module):
    """Heads that are compared with one another: their dimensions have one order alone."""

    def __init__(self, mixing: bool):
        super().__init__()
        self.mixing, self.into, self.out = mixing, nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x):
        heads = self.into(x).view(-1, 3, 4)
        mixed = (heads @ heads.mT).softmax(-1) @ heads if self.mixing else heads.relu()
        return self.out(mixed.flatten(1))


@pytest.mark.parametrize("mixing", [True, False])
def test_units_within_others_share_an_order_where_these_meet(mixing):
    model = Mixing(mixing)
    groups = permutation_groups(model, torch.randn(2, 5))
    if mixing:
        assert sizes(groups) == {"into (blocks of 4)": 3, "into (inside blocks of 4)": 4}
        assert [group.within for group in groups.groups] == ["", ""]
    require_same_outputs(model, torch.randn(2, 5), groups)


def test_rotary_embeddings_freeze_the_dimensions_that_they_turn():
    groups = permutation_groups(Transformer(rotary=True), TOKENS)
    assert sizes(groups) == {
        "embed": 24, HEADS: 4, "attention.v (inside blocks of 6)": 6, "gate": 10
    }  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.cell, self.out = nn.Linear(3, 6), nn.LSTM(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(F.relu(self.cell(F.relu(self.into(x)))[0]))


def test_what_is_not_known_stays_in_place_and_is_named():
    model = Recurrent()
    groups = permutation_groups(model, torch.randn(4, 2, 3))
    assert groups.groups == ()
    assert groups.unknown == ("lstm",)
    assert model(torch.randn(4, 2, 3)).shape == (4, 2, 2)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(3, 3), nn.Linear(3, 7)
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, x):
        return {"logits": self.used(x) * self.mask, "why": None}


def test_unused_parameters_and_outputs_stay_in_place():
    assert permutation_groups(Unused(), torch.randn(2, 3)).groups == ()


class Buffered(nn.Module):
    """Hidden units under a buffer that the state dict does not hold."""

    def __init__(self, persistent: bool):
        super().__init__()
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("scale", torch.rand(8), persistent=persistent)

    def forward(self, x):
        return self.out(self.into(x).relu() * self.scale)


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_are_permuted_only_where_the_state_dict_holds_them(persistent):
    groups = permutation_groups(Buffered(persistent), torch.randn(2, 3))
    assert sizes(groups) == ({"into": 8} if persistent else {})


def test_inputs_by_position_and_by_keyword():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 2)

        def forward(self, left, right):
            return self.out((self.a(left) + self.b(right)).relu())

    left, right = torch.randn(2, 3), torch.randn(2, 2)
    found = permutation_groups(Two(), (left, right))
    assert sizes(found) == {"a": 8}
    assert permutation_groups(Two(), {"left": left, "right": right}) == found


def test_half_precision_models_and_wrapped_models():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    found = permutation_groups(model, torch.randn(2, 4))
    assert permutation_groups(nn.DataParallel(model), torch.randn(2, 4)) == found
    assert permutation_groups(model.bfloat16(), torch.randn(2, 4)) == found


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permutation_groups(model, torch.randn(2, 4))
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return x if x.sum() > 0 else -x


def test_models_that_cannot_be_traced_say_where(capfd):
    with pytest.raises(AlignmentError) as caught:
        permutation_groups(Branching(), torch.randn(2, 4))
    text = str(caught.value)
    assert text.startswith(
        "Branching cannot be traced: what forward does depends on the values of a tensor.\n"
    )
    assert "return x if x.sum() > 0 else -x" in text
    assert "write the groups by hand as PermutationGroups" in text
    assert capfd.readouterr() == ("", "")


def test_models_without_tensors_are_refused():
    class Words(nn.Module):
        def forward(self, x):
            return "words"

    with pytest.raises(AlignmentError, match="Words returns no tensors"):
        permutation_groups(Words(), torch.randn(2, 4))


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"Linear cannot be run on inputs \[2, 4\]"):
        permutation_groups(nn.Linear(3, 2), torch.randn(2, 4))


class Regions(nn.Module):
    """Layers inside of a part without gradients and of one under autocast."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        with torch.enable_grad():
            x, y = self.a(x).relu(), self.a(x).sigmoid()
        with torch.autocast("cpu", enabled=False):
            x = self.b(x * y).relu()
        return self.c(x)


def test_regions_are_followed_inside():
    groups = permutation_groups(Regions(), torch.randn(2, 3))
    assert sizes(groups) == {"a": 8, "b": 6}
    assert groups.unknown == ()


class Chooses(nn.Module):
    """Positions of the largest unit: as numbers they are worth something."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.into, self.out = dim, nn.Linear(3, 8), nn.Linear(1, 2)

    def forward(self, x):
        return self.out(self.into(x).argmax(self.dim, keepdim=True).float())


@pytest.mark.parametrize("dim", [None, 1])
def test_positions_freeze_what_they_count(dim):
    assert permutation_groups(Chooses(dim), torch.randn(2, 3)).groups == ()


class Biased(nn.Module):
    """Attention with a learned bias for every head and pair of positions."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 36), nn.Linear(12, 2)
        self.bias = nn.Parameter(torch.randn(3, 5, 5))

    def forward(self, x):
        q, k, v = self.qkv(x).view(-1, 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_masks_that_are_learned_go_with_their_heads():
    model = Biased()
    groups = permutation_groups(model, torch.randn(2, 5, 6))
    heads = next(group for group in groups.groups if group.size == 3)
    assert ("bias", 0, 1) in places(groups, heads.name)
    require_same_outputs(model, torch.randn(2, 5, 6), groups)


class Remembering(nn.Sequential):
    last = None

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


def test_what_a_model_remembers_of_its_inputs_stays():
    model = Remembering(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    permutation_groups(model, torch.randn(2, 4))
    assert model.last is None


def odd_shape(call):
    return ((),)


def odd_error(call):
    raise ValueError


@pytest.mark.parametrize("rule", [odd_shape, odd_error])
def test_rules_that_do_not_cover_a_use_freeze_it(rule, monkeypatch):
    monkeypatch.setattr(operations, "RULES", {**operations.RULES, "softmax": rule})
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Softmax(-1), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    groups = permutation_groups(model, torch.randn(2, 4))
    assert sizes(groups) == {"2": 6}
    assert groups.unknown == ("softmax",)
