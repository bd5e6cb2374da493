"""The heads that are trained by gradient: attention, attention_mean and gated."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.fusion import learning
from alloykit.fusion.attention import attention
from alloykit.fusion.attention_mean import attention_mean
from alloykit.fusion.concat import concat
from alloykit.fusion.feeding import Standard
from alloykit.fusion.gated import gated
from alloykit.fusion.head import HeadData, HeadShape
from alloykit.fusion.learning import head_loss, seeded
from alloykit.fusion.parting import held_out

CLASSES = HeadShape((3, 3), 3, "classification")


def two_halves(rows=400, seed=0):
    """Member 1 is right where the context is positive, member 2 where it is not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (rows,), generator=generator)
    context = torch.randn(rows, 2, generator=generator)
    right = F.one_hot(labels, 3) * 4.0
    wrong = torch.randn(rows, 3, generator=generator) * 2
    first = torch.where(context[:, :1] > 0, right, wrong).log_softmax(-1)
    second = torch.where(context[:, :1] > 0, wrong, right).log_softmax(-1)
    return HeadData((first, second), labels, context)


def said_by(module, data):
    with torch.no_grad():
        return module(data.members, data.context)


def accuracy(said, data):
    return float((said.argmax(1) == data.targets).float().mean())


def of_values(seed=0, rows=300, unit=1.0):
    generator = torch.Generator().manual_seed(seed)
    said = torch.randn(2, rows, 1, generator=generator)
    targets = (said[0] + 0.05 * torch.randn(rows, 1, generator=generator)) * unit
    return HeadData(tuple(said * unit), targets), HeadShape((1, 1), 1, "regression")


@pytest.mark.parametrize("head", [attention(), attention_mean()])
def test_untrained_attention_follows_what_the_members_say(head):
    sure = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.01, 0.98]]).log()
    module = head.build(CLASSES).eval()
    with torch.no_grad():
        said = module([sure, sure]).exp()
    assert said.argmax(1).tolist() == [0, 2]
    assert 0.9 < float(said.amax()) < 1.0


def test_untrained_attention_over_equal_values_gives_them_back():
    shape = HeadShape((2, 2), 2, "regression")
    equal = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for head in (attention(), attention_mean(heads=3)):
        with torch.no_grad():
            assert_close(head.build(shape).eval()([equal, equal]), equal)


def test_attention_is_the_formula_of_its_docstring():
    module = attention().build(CLASSES).eval().double()
    logs = [torch.randn(1, 3, dtype=torch.float64).log_softmax(-1) for _ in range(2)]
    fed = [value.exp().sqrt() for value in logs]
    query = module.query(sum(fed) / 2)
    scores = torch.cat([(query * key(x)).sum(1) for key, x in zip(module.keys, fed, strict=True)])
    weights = (scores / 32**0.5).softmax(0)
    attended = weights[0] * fed[0] + weights[1] * fed[1]
    with torch.no_grad():
        assert_close(module.attention(logs)[0], weights)
        assert_close(module(logs), module.last(attended).log_softmax(-1))


def test_attention_mean_puts_the_mean_beside_the_attended_sums():
    module = attention_mean(heads=2).build(CLASSES)
    assert module.last.in_features == 3 * 3
    quarter, half = 8 * torch.eye(3) / 4, 8 * torch.eye(3) / 2
    assert torch.equal(module.last.weight.detach(), torch.cat([quarter, quarter, half], 1))


def test_attention_by_context_believes_the_member_that_is_at_home():
    data = two_halves()
    shape = HeadShape((3, 3), 3, "classification", context=2)
    module = attention(context=True, epochs=60).fit(data, shape).module
    with torch.no_grad():
        shares = module.attention(data.members, data.context)
    clear = data.context[:, 0].abs() > 0.5
    believed = (shares[:, 0] > 0.5) == (data.context[:, 0] > 0)
    assert float(believed[clear].float().mean()) > 0.9
    assert accuracy(said_by(module, data), data) > 0.95


def test_attention_takes_features_of_unequal_widths():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(300, 5, generator=generator)
    labels = (columns[:, 0] > 0).long()
    shape = HeadShape((2, 3), 2, "classification", source="features")
    data = HeadData((columns[:, :2], columns[:, 2:]), labels)
    for head in (attention(width=4, epochs=40), attention_mean(width=4, epochs=40)):
        assert accuracy(said_by(head.fit(data, shape).module, data), data) > 0.9


@pytest.mark.parametrize("head", [attention(epochs=60), attention_mean(epochs=60)])
def test_attention_over_values_learns_in_any_unit(head):
    for unit in (1.0, 1e4):
        data, shape = of_values(unit=unit)
        missed = (said_by(head.fit(data, shape).module, data) - data.targets).square().mean()
        mean = (torch.stack(data.members).mean(0) - data.targets).square().mean()
        assert float(missed) < 0.4 * float(mean)


def test_gated_starts_at_the_mean_of_probabilities_and_of_values():
    data = two_halves(rows=6)
    shape = HeadShape((3, 3), 3, "classification", context=2)
    mean = torch.stack(data.members).exp().mean(0).log()
    assert_close(said_by(gated().build(shape).eval(), data), mean)
    values, _ = of_values(rows=6)
    with_context = HeadData(values.members, values.targets, torch.randn(6, 2))
    module = gated().build(HeadShape((1, 1), 1, "regression", context=2)).eval()
    assert_close(said_by(module, with_context), torch.stack(values.members).mean(0))


def test_gated_is_a_mixture_with_the_gates_as_weights():
    data = two_halves()
    shape = HeadShape((3, 3), 3, "classification", context=2)
    module = gated(epochs=40, learning_rate=1e-2).fit(data, shape).module
    with torch.no_grad():
        gates = module.attention(data.members, data.context)
    mixture = sum(gates[:, m, None] * said.exp() for m, said in enumerate(data.members))
    said = said_by(module, data)
    assert_close(said.exp(), mixture)
    mean = torch.stack(data.members).exp().mean(0).log()
    assert F.nll_loss(said, data.targets) < 0.5 * F.nll_loss(mean, data.targets)
    assert float(((gates[:, 0] > 0.5) == (data.context[:, 0] > 0)).float().mean()) > 0.9


def test_gated_survives_members_that_rule_the_truth_out():
    data = two_halves(rows=60)
    never = data.members[0].clone()
    never[torch.arange(60), data.targets] = -1e4
    shape = HeadShape((3, 3), 3, "classification", context=2)
    fitted = gated(epochs=5).fit(HeadData((never, never), data.targets, data.context), shape)
    assert bool(torch.isfinite(said_by(fitted.module, data)).all())


def test_heads_that_need_a_context_say_so():
    data, shape = two_halves(rows=20), CLASSES
    for head in (gated(), attention(context=True)):
        assert head.context == "required"
        with pytest.raises(MissingInput, match="needs a context"):
            head.fit(HeadData(data.members, data.targets), shape)
    assert attention().context == "none"


def test_training_stops_early_and_keeps_the_best_epoch():
    generator = torch.Generator().manual_seed(0)
    noise = tuple(torch.randn(2, 60, 3, generator=generator).log_softmax(-1))
    labels = torch.randint(3, (60,), generator=generator)
    fitted = attention(patience=3, learning_rate=5e-2).fit(HeadData(noise, labels), CLASSES)
    scores = [epoch["validation"] for epoch in fitted.history]
    assert len(scores) < 200
    assert fitted.chosen["epochs"] == scores.index(min(scores)) + 1 == len(scores) - 3


def test_held_out_rows_are_never_trained_on():
    data = two_halves(rows=50)
    trained_on, apart = held_out(data.targets, 0)
    members = tuple(member.clone() for member in data.members)
    for member in members:
        member[apart] = member[apart].flip(1)
    other = HeadData(members, data.targets)
    first, second = (attention(epochs=1).fit(given, CLASSES).module for given in (data, other))
    assert torch.equal(first.last.weight, second.last.weight)
    inside = data.members[0].clone()
    inside[trained_on] -= 1.0
    third = attention(epochs=1).fit(HeadData((inside, data.members[1]), data.targets), CLASSES)
    assert not torch.equal(first.last.weight, third.module.last.weight)


def test_the_loss_of_values_is_measured_in_their_spread():
    targets = torch.tensor([[0.0, 0.0], [2.0, 20.0]])
    spread = Standard(2).learn(targets)
    found = head_loss(targets + torch.tensor([1.0, 10.0]), targets, spread)
    assert float(found) == pytest.approx(1.0)


def test_starting_weights_are_of_the_seed_alone():
    before = torch.get_rng_state()
    first, second = (seeded(lambda: torch.randn(3), seed) for seed in (1, 2))
    assert torch.equal(first, seeded(lambda: torch.randn(3), 1))
    assert not torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("head", [attention, attention_mean])
def test_every_mistake_in_attention_is_listed(head):
    with pytest.raises(InvalidParameter) as caught:
        head(heads=0, width=0, feed="root")
    for word in ("'heads'", "'width'", "'feed'", head.__name__):
        assert word in str(caught.value)


def test_gated_refuses_empty_layers():
    with pytest.raises(InvalidParameter, match="at least 1"):
        gated(hidden=[8, 0])


def test_another_seed_starts_elsewhere():
    data = two_halves(rows=40)
    for make in (attention, attention_mean):
        first, second = (
            said_by(make(epochs=2, seed=seed).fit(data, CLASSES).module, data) for seed in (0, 1)
        )
        assert not torch.equal(first, second)
    assert concat(hidden=[3], epochs=2).parameters["seed"] == 0


def test_batches_grow_with_the_rows_so_that_epochs_take_no_more_steps(monkeypatch):
    sizes = []
    real = learning.train

    def counted(model, rows, loss, training, **options):
        sizes.append((len(rows), training.batch_size))
        return real(model, rows, loss, training, **options)

    monkeypatch.setattr(learning, "train", counted)
    generator = torch.Generator().manual_seed(0)
    for count, given, expected in ((100, None, 128), (6000, None, 240), (6000, 64, 64)):
        members = tuple(torch.randn(2, count, 3, generator=generator).log_softmax(-1))
        data = HeadData(members, torch.randint(3, (count,), generator=generator))
        attention(epochs=1, batch_size=given).fit(data, HeadShape((3, 3), 3, "classification"))
        assert sizes[-1] == (int(0.8 * count), expected)
