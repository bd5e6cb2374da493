from __future__ import annotations

import pytest
import torch
from torch import nn

from alloykit.data.examples import as_examples
from alloykit.errors import InvalidParameter, MissingInput
from alloykit.training.retraining import blank, retrain, union
from alloykit.training.rows import hold
from alloykit.training.scoring import validation_loss
from alloykit.training.settings import Training

LAYERS = {
    "linear": lambda: nn.Linear(9, 8),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "convolution": lambda: nn.Conv2d(3, 4, 3),
    "transposed": lambda: nn.ConvTranspose1d(3, 4, 3),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm without parameters": lambda: nn.BatchNorm1d(4, affine=False),
    "instance norm": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "layer norm": lambda: nn.LayerNorm(4),
    "rms norm": lambda: nn.RMSNorm(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "embedding": lambda: nn.Embedding(5, 4, padding_idx=0),
    "embedding bag": lambda: nn.EmbeddingBag(5, 4),
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
    "gru cell": lambda: nn.GRUCell(3, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "attention with other widths": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
    "transformer layer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "transformer": lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
    "prelu": nn.PReLU,
}  # fmt: skip


def trained(build) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build()
    for tensor in (*model.parameters(), *model.buffers()):
        with torch.no_grad():
            tensor.fill_(77)
    return model


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_of_torch_is_initialised_as_when_it_was_built(kind):
    member = trained(LAYERS[kind])
    new = blank(member, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = LAYERS[kind]()
    for (name, ours), theirs in zip(
        new.state_dict().items(), built.state_dict().values(), strict=True
    ):
        assert ours.shape == theirs.shape, name
        assert not bool((ours == 77).any()), name
        if theirs.unique().numel() == 1:  # constants are the same constants
            assert torch.equal(ours, theirs), name
        elif theirs.numel() >= 40:
            assert ours.std() == pytest.approx(float(theirs.std()), rel=0.4), name
    assert all(bool((tensor == 77).all()) for tensor in member.state_dict().values())


def test_a_seed_says_all_and_the_global_state_is_left_alone():
    member = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    before = torch.get_rng_state()
    one = blank(member, seed=1).state_dict()
    torch.rand(5)
    again, other = blank(member, seed=1).state_dict(), blank(member, seed=2).state_dict()
    torch.set_rng_state(before)
    blank(member, seed=1)
    blank(lambda: nn.Linear(3, 4), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert not torch.equal(one["0.weight"], member[0].weight)


def test_a_callable_builds_the_model():
    one, other = (blank(lambda: nn.Linear(2, 2), seed=4) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    assert not torch.equal(one.weight, blank(lambda: nn.Linear(2, 2), seed=5).weight)


class Odd(nn.Module):
    """A parameter and a constant of its own, and parts."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 4))
        self.register_buffer("mean", torch.tensor([0.5, 0.25]))
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)
        self.head.weight = self.embed.weight


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))


def test_parameters_that_nothing_sets_are_all_listed():
    member = nn.Sequential(
        Odd(), Scale(), nn.Linear(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    )
    member.register_parameter("codes", nn.Parameter(torch.ones(2).byte(), requires_grad=False))
    with pytest.raises(InvalidParameter) as caught:
        blank(member, seed=0)
    text = str(caught.value)
    for line in (
        "5 parameters of the model cannot be initialised anew",
        "0.token [1, 4] of Odd",
        "1.factor [] of Scale",
        "3.parametrizations.weight.original0 [3, 1] of ParametrizationList",
        "codes [2] of Sequential",
        "Give a callable that builds a new model instead",
    ):
        assert line in text
    assert "2.weight" not in text


def test_ties_and_constants_stay_and_everything_trains():
    class Whole(Odd):
        def reset_parameters(self) -> None:
            nn.init.normal_(self.token)

    member = Whole().requires_grad_(False).eval()
    new = blank(member, seed=0)
    assert new.head.weight is new.embed.weight
    assert new.head.weight is not member.head.weight
    assert torch.equal(new.mean, member.mean)
    assert all(parameter.requires_grad for parameter in new.parameters())
    assert not any(parameter.requires_grad for parameter in member.parameters())
    assert not torch.equal(new.token, member.token)


def test_half_precision_stays():
    assert blank(nn.Linear(2, 2).bfloat16(), seed=0).weight.dtype == torch.bfloat16


def partitions() -> list:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(90, 2, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    order = targets.argsort()  # each partition knows little of the other class
    return [as_examples((inputs[rows], targets[rows]), "train") for rows in order.split(30)]


def test_retraining_on_the_union_learns_what_no_partition_has():
    parts = partitions()
    data = union(parts)
    assert len(data) == 90
    assert torch.equal(data.targets, torch.cat([part.targets for part in parts]))
    member = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model = blank(member, seed=1)
    history = retrain(
        model, data, Training(epochs=15, batch_size=16, learning_rate=0.02), task="classification",
        validation=validation_loss(parts[0], "classification"),
    )  # fmt: skip
    assert (model(data.inputs).argmax(1) == data.targets).float().mean() > 0.9
    assert history.metric == "loss"
    alone = blank(member, seed=1)
    retrain(alone, hold(parts[0]), Training(epochs=15, batch_size=16), task="classification")
    assert (alone(data.inputs).argmax(1) == data.targets).float().mean() < 0.7


def test_a_union_of_nothing():
    with pytest.raises(MissingInput, match="at least one partition"):
        union([])
