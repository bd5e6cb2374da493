from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alloykit.data.batches import forward
from alloykit.data.examples import as_examples
from alloykit.errors import DataError, InvalidParameter, MissingInput
from alloykit.training.loop import Validation, train
from alloykit.training.losses import loss_of
from alloykit.training.rows import Rows
from alloykit.training.scoring import validation_loss
from alloykit.training.settings import Training

LOSS = loss_of("classification")


def data(count: int = 40) -> Rows:
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return Rows(inputs, (inputs[:, 0] > 0).long(), augment=lambda x: x + 0.1 * torch.randn_like(x))


def net(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), *layers, nn.ReLU(), nn.Linear(8, 2))


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def scores(*values: float) -> Validation:
    given = iter(values)
    return Validation(lambda model: next(given), "score", higher_is_better=True)


def test_the_same_seed_gives_the_same_bits_and_the_global_state_is_left_alone():
    def trained(seed: int, global_seed: int) -> list[torch.Tensor]:
        model = net(nn.BatchNorm1d(8), nn.Dropout(0.5))
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        train(model, data(), LOSS, Training(epochs=2, batch_size=8, accumulate=2, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        return bits(model)

    assert same(trained(1, 5), trained(1, 6))
    assert not same(trained(1, 5), trained(2, 5))


def test_what_callbacks_draw_does_not_reach_training():
    quiet, loud = net(nn.Dropout()), net(nn.Dropout())
    training = Training(epochs=2, batch_size=8)
    train(quiet, data(), LOSS, training)
    train(loud, data(), LOSS, training, after_step=lambda: torch.rand(3))
    assert same(bits(quiet), bits(loud))


def test_every_step_draws_numbers_of_its_own():
    drawn = []
    rows = Rows(data().inputs, data().targets, augment=lambda x: drawn.append(torch.rand(())) or x)
    train(net(), rows, LOSS, Training(epochs=2, batch_size=8, accumulate=2))
    assert len(drawn) == len({float(number) for number in drawn}) == 10


def test_a_plain_loop_gives_the_same_weights():
    """AdamW by hand with the order and schedule that the settings mean."""
    from alloykit.training.order import epoch_order

    rows = Rows(data().inputs.double(), data().targets)
    ours, theirs = net().double(), net().double()
    train(ours, rows, LOSS, Training(epochs=3, batch_size=10, learning_rate=0.01, clip_norm=0.2))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    for epoch in (1, 2, 3):
        for batch in epoch_order(0, epoch, 40).split(10):
            optimizer.zero_grad()
            F.cross_entropy(theirs(rows.inputs[batch]), rows.targets[batch]).backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.2)
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(bits(ours), bits(theirs), rtol=1e-12, atol=1e-14)


def test_sgd_steps_along_the_gradient_with_decay_and_momentum():
    from alloykit.training.order import epoch_order

    rows = Rows(data().inputs.double(), data().targets)
    ours, theirs = net().double(), net().double()
    settings = Training(epochs=2, batch_size=16, learning_rate=0.1, weight_decay=0.02,
                        schedule="linear", optimizer="sgd", momentum=0.9)  # fmt: skip
    train(ours, rows, LOSS, settings)
    weights = list(theirs.parameters())
    moving = [torch.zeros_like(weight) for weight in weights]
    batches = [batch for epoch in (1, 2) for batch in epoch_order(0, epoch, 40).split(16)]
    for step, batch in enumerate(batches):
        loss = F.cross_entropy(theirs(rows.inputs[batch]), rows.targets[batch])
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient, last in zip(weights, gradients, moving, strict=True):
                last.mul_(0.9).add_(gradient + 0.02 * weight)
                weight -= 0.1 * (1 - step / len(batches)) * last
    torch.testing.assert_close(bits(ours), bits(theirs), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 5), (13, 4), (40, 1)])
def test_accumulation_equals_the_big_batch(batch_size, accumulate):
    rows = Rows(data().inputs.double(), data().targets)
    big, small = net().double(), net().double()
    settings = {"epochs": 3, "learning_rate": 0.01}
    one = train(big, rows, LOSS, Training(batch_size=40, **settings))
    other = train(
        small, rows, LOSS, Training(batch_size=batch_size, accumulate=accumulate, **settings)
    )
    torch.testing.assert_close(bits(small), bits(big), rtol=1e-12, atol=1e-14)
    assert other.losses == pytest.approx(one.losses, rel=1e-12)
    assert other.steps == one.steps == 3


def test_the_history():
    told = []
    model = net()
    history = train(
        model, data(20), LOSS, Training(epochs=2, batch_size=8, learning_rate=0.1),
        validation=scores(0.25, 0.5), progress=lambda *each: told.append(each),
    )  # fmt: skip
    assert (history.steps, history.best, history.metric) == (6, 2, "score")
    assert [epoch.validation for epoch in history.epochs] == [0.25, 0.5]
    assert history.epochs[1].learning_rate == pytest.approx(0.05 * (1 + math.cos(math.pi * 5 / 6)))
    assert all(epoch.seconds > 0 for epoch in history.epochs)
    assert [each[1:] for each in told] == [(step, 6) for step in range(1, 7)]
    assert told[2][0] == f"epoch 1 of 2, loss {history.losses[0]:.4g}"
    assert told[5][0] == f"epoch 2 of 2, loss {history.losses[1]:.4g}, score 0.25"
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def weights_by_epoch(epochs: int, **options) -> list[list[torch.Tensor]]:
    seen: list[list[torch.Tensor]] = []
    model = net(nn.BatchNorm1d(8))
    training = Training(epochs=epochs, batch_size=8, schedule="constant")
    train(model, data(), LOSS, training, after_epoch=lambda _: seen.append(bits(model)), **options)
    return [*seen, bits(model)]


@pytest.mark.parametrize(
    ("given", "best"),
    [((1, 3, 2), 2), ((3, 3, 1), 1), ((math.nan, 1, math.nan), 2), ((1, 2, 3), 3)],
)
def test_the_best_weights_are_kept_and_restored(given, best):
    *seen, final = weights_by_epoch(3, validation=scores(*given))
    assert same(final, seen[best - 1])
    assert not any(same(final, other) for i, other in enumerate(seen, 1) if i != best)


def test_the_last_weights_are_kept_without_validation():
    *seen, final = weights_by_epoch(3)
    assert same(final, seen[-1])


def test_patience_ends_training_early():
    model = net()
    history = train(
        model, data(), LOSS, Training(epochs=9, patience=2), validation=scores(5, 6, 4, 6, 9)
    )
    assert (len(history.epochs), history.best) == (4, 2)
    assert history.stopped == "no better score in 2 epochs"
    with pytest.raises(MissingInput, match="there is no validation"):
        train(net(), data(), LOSS, Training(patience=2))


def test_validation_is_measured_in_eval_mode_without_gradients():
    modes = []

    def measure(model: nn.Module) -> float:
        modes.append((model.training, torch.is_grad_enabled()))
        return 0.0

    model = net()
    train(model, data(), LOSS, Training(epochs=2), validation=Validation(measure, "m"))
    assert modes == [(False, False)] * 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("validated", [False, True])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_best_weights(value, validated):
    seen: list[list[torch.Tensor]] = []
    calls = []

    def loss(model, part):
        calls.append(1)
        return LOSS(model, part) * (value if len(calls) == 13 else 1.0)

    model = net(nn.BatchNorm1d(8))
    with pytest.raises(DataError) as caught:
        train(
            model, data(), loss, Training(epochs=4, batch_size=8),
            validation=scores(2, 1, 0) if validated else None,
            after_epoch=lambda _: seen.append(bits(model)),
        )  # fmt: skip
    text = str(caught.value)
    assert f"The loss became {value} in epoch 3 of 4, step 3. Lower learning_rate (0.002)" in text
    assert "clip the gradients (clip_norm=1), or look at the data" in text
    best = 1 if validated else 2
    assert f"The model holds the weights of epoch {best}." in text
    assert same(bits(model), seen[best - 1])
    assert not model.training


def test_a_loss_that_is_nan_at_once_leaves_the_weights_as_they_were():
    model = net()
    before = bits(model)
    with pytest.raises(DataError, match=r"epoch 1 of 20, step 1\..*weights that it started with"):
        train(model, data(), lambda m, p: LOSS(m, p) * math.nan)
    assert same(bits(model), before)


def test_a_gradient_that_is_nan_in_the_last_step_is_not_kept():
    """The loss is finite, and no further one would show it."""
    model, steps = net(), []

    def loss(m, part):
        steps.append(1)
        value = LOSS(m, part)
        return value + (torch.zeros_like(value) * value).sqrt() if len(steps) == 10 else value

    seen = []
    with pytest.raises(DataError, match=r"Parameters became nan in epoch 2 of 2, step 5\."):
        train(
            model, data(), loss, Training(epochs=2, batch_size=8),
            after_epoch=lambda _: seen.append(bits(model)),
        )  # fmt: skip
    assert same(bits(model), seen[0])


def test_frozen_parameters_stay_and_tied_ones_stay_tied():
    model = net(nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[1].weight
    model[0].requires_grad_(False)
    before = bits(model[0])
    tied = model[1].weight.clone()
    train(model, data(), LOSS, Training(epochs=1), validation=scores(1))
    assert same(bits(model[0]), before)
    assert model[2].weight is model[1].weight
    assert not torch.equal(model[1].weight, tied)


def test_a_model_with_nothing_to_train():
    with pytest.raises(InvalidParameter, match="none of the model's 4 parameters requires a"):
        train(net().requires_grad_(False), data(), LOSS)
    with pytest.raises(InvalidParameter, match="none of the model's 0 parameters"):
        train(nn.Identity(), data(), LOSS)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_computes_in_it_and_keeps_float32_parameters(precision):
    seen = set()

    def loss(model, part):
        outputs = forward(model, part.inputs)
        seen.add(outputs.dtype)
        return F.cross_entropy(outputs.float(), part.targets)

    model = net()
    training = Training(
        epochs=20, batch_size=8, learning_rate=0.01, precision=precision, clip_norm=1.0
    )
    history = train(model, data(), loss, training)
    assert seen == {getattr(torch, precision)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert history.losses[-1] < 0.5 * history.losses[0]


def test_float16_parameters_are_refused_for_float16():
    with pytest.raises(InvalidParameter, match=r"4 are float16.*Call model.float\(\) first"):
        train(net().half(), data(), LOSS, Training(precision="float16"))


def test_inputs_go_to_the_models_dtype():
    model = net().double()
    rows = data()
    assert rows.inputs.dtype == torch.float32
    assert len(train(model, rows, LOSS, Training(epochs=1)).epochs) == 1


@pytest.mark.parametrize(("count", "steps"), [(17, 2), (9, 1)])
def test_batch_norm_gets_no_batch_of_one(count, steps):
    assert train(
        net(nn.BatchNorm1d(8)), data(count), LOSS, Training(epochs=1, batch_size=8)
    ).steps == steps  # fmt: skip


def test_the_validation_loss_of_a_split():
    tokens = torch.tensor([[0, -100, 1], [-100, -100, 1]])
    logits = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    split = as_examples([(logits[:1], tokens[:1]), (logits[1:], tokens[1:])], "validation")
    log = logits.double().log_softmax(-1)
    expected = -(log[0, 0, 0] + log[0, 2, 1] + log[1, 2, 1]) / 3
    measured = validation_loss(split, "tokens")
    assert measured.measure(nn.Identity()) == pytest.approx(float(expected), rel=1e-6)
    assert (measured.metric, measured.higher_is_better) == ("loss", False)


def test_the_loop_is_as_cheap_to_import_as_torch():
    heavy = [
        "accelerate",
        "torchmetrics",
        "scipy",
        "transformers",
        "sklearn",
        "matplotlib",
        "pydantic",
        "ray",
    ]
    code = (
        "import sys, alloykit.training.loop; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_loop_stays_short():
    from pathlib import Path

    from alloykit.training import loop

    assert len(Path(loop.__file__).read_text().splitlines()) <= 120
