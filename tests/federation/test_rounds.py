"""Rounds in one process, against what can be worked out by hand."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alloykit.data.examples import as_examples, from_arrays
from alloykit.errors import DataError, InvalidParameter, MissingInput, UnknownName
from alloykit.federation.checks import Checks
from alloykit.federation.fedavg import fedavg
from alloykit.federation.partitioning import dirichlet
from alloykit.federation.round_history import FederationHistory
from alloykit.federation.rounds import FederatedRun, run_rounds
from alloykit.federation.settings import Federation
from alloykit.training.loop import train
from alloykit.training.losses import loss_of
from alloykit.training.order import derived_seed
from alloykit.training.rows import Rows
from alloykit.training.scoring import Validation
from alloykit.training.settings import Training

LOSS = loss_of("classification")
CENTRES = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
FAST = {"epochs": 4, "batch_size": 16, "learning_rate": 0.2}
WHOLE = {"epochs": 1, "batch_size": 1000, "learning_rate": 0.3}


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return CENTRES[labels] + torch.randn(count, 2, generator=generator), labels


def partitions(clients: int = 4, count: int = 240, concentration: float = 0.5) -> dict[str, Rows]:
    inputs, labels = blobs(count, 0)
    dealt = dirichlet(labels, clients, 1, concentration=concentration, least=10)
    return {f"client {i}": Rows(inputs[rows], labels[rows]) for i, rows in enumerate(dealt)}


def net(*layers: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 6), *layers, nn.ReLU(), nn.Linear(6, 3))


def play(model: nn.Module | None = None, parts: dict[str, Rows] | None = None, *,
         validated: bool = False, unlabelled: Any = None, snapshot: Any = None, **settings: Any,
         ) -> FederatedRun:  # fmt: skip
    return run_rounds(
        copy.deepcopy(net() if model is None else model),
        partitions() if parts is None else parts,
        Federation(**{"rounds": 2, **settings}),
        validation=as_examples(blobs(300, 5), "validation") if validated else None,
        unlabelled=unlabelled,
        snapshot=snapshot,
    )


def bits(run: FederatedRun) -> list[torch.Tensor]:
    return list(run.model.state_dict().values())


def same(one: FederatedRun, other: FederatedRun) -> bool:
    return all(map(torch.equal, bits(one), bits(other)))


def assert_near(one: FederatedRun, other: nn.Module, **tolerance: float) -> None:
    for found, wanted in zip(bits(one), other.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)


def test_one_round_is_the_mean_of_clients_trained_apart():
    parts = partitions()
    run = play(parts=parts, rounds=1, seed=7, training={"epochs": 2, "learning_rate": 0.1})
    total = sum(map(len, parts.values()))
    expected = {name: torch.zeros_like(t).double() for name, t in net().state_dict().items()}
    for name, rows in parts.items():
        model = net()
        train(model, rows, LOSS, Training(
            epochs=2, batch_size=32, learning_rate=0.1, weight_decay=0.0, schedule="constant",
            optimizer="sgd", seed=derived_seed(7, "client", 1, name),
        ))  # fmt: skip
        for key, tensor in model.state_dict().items():
            expected[key] += tensor.double() * len(rows) / total
    for key, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key].float(), rtol=1e-6, atol=1e-7)


def test_one_whole_batch_a_round_is_gradient_descent_on_the_union():
    run = play(net().double(), rounds=5, training=WHOLE)
    inputs, labels = blobs(240, 0)
    model = net().double()
    for _ in range(5):
        gradients = torch.autograd.grad(
            F.cross_entropy(model(inputs.double()), labels), list(model.parameters())
        )
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
    assert_near(run, model, rtol=1e-10, atol=1e-12)


def test_the_seed_decides_and_the_order_of_the_partitions_does_not():
    parts = partitions()
    turned = dict(reversed(parts.items()))
    given = {"fraction": 0.5, "drop_out": 0.2, "rounds": 4}
    model = net(nn.BatchNorm1d(6), nn.Dropout(0.2))
    first = play(model, parts, **given)
    assert same(first, play(model, turned, **given))
    assert [r.record for r in first.history.rounds] == [
        r.record for r in play(model, turned, **given).history.rounds
    ]
    assert not same(first, play(model, parts, seed=1, **given))


def test_training_draws_nothing_from_the_callers_generator():
    before = torch.get_rng_state()
    play(net(nn.Dropout(0.5)), attacks={"client 1": "noise"})
    assert torch.equal(before, torch.get_rng_state())


def test_it_learns_and_the_history_says_how():
    run = play(rounds=6, validated=True, training=FAST)
    history = run.history
    assert (history.metric, history.higher_is_better) == ("accuracy", True)
    inputs, labels = blobs(300, 5)
    with torch.no_grad():
        logits = run.model(inputs)
    assert history.scores[-1] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert history.rounds[-1].loss == pytest.approx(
        float(F.cross_entropy(logits, labels)), rel=1e-5
    )
    assert history.scores[-1] > 0.85
    assert history.rounds[0].training_loss > history.rounds[-1].training_loss
    assert history.scores[history.best - 1] == max(history.scores)
    assert not run.model.training
    assert FederationHistory.of(history.to_json()) == history


def test_bytes_are_those_of_the_tensors_that_travel():
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 3))
    tied[1].weight = tied[0].weight
    # Weights 4 (once) + 2 + 2, BatchNorm 4 x 2, last 9 in float32, and one int64 counter.
    one = (4 + 2 + 2 + 8 + 9) * 4 + 8
    run = play(tied, rounds=3, drop_out=0.4)
    gone = [
        sum(left.reason == "it never answered" for left in r.record.left_out)
        for r in run.history.rounds
    ]
    assert 0 < sum(gone) < 12
    assert [r.bytes_down for r in run.history.rounds] == [4 * one] * 3
    assert [r.bytes_up for r in run.history.rounds] == [(4 - n) * one for n in gone]
    assert run.history.moved == list(itertools.accumulate((8 - n) * one for n in gone))
    assert run.model[1].weight is run.model[0].weight


def test_a_fraction_or_a_number_of_clients_is_asked():
    run = play(rounds=8, fraction=0.5)
    assert {len(r.clients) for r in run.history.rounds} == {2}
    assert {name for r in run.history.rounds for name in r.clients} == set(partitions())
    assert same(run, play(rounds=8, clients_per_round=2))


def test_too_few_clients_leave_the_model_as_it_is():
    run = play(checks=Checks(min_clients=5), validated=True)
    assert all(map(torch.equal, bits(run), net().state_dict().values()))
    assert run.history.rounds[0].record.kept_server == "4 updates of at least 5 can be used"


def test_a_client_whose_training_diverges_is_left_out_with_the_reason():
    parts = partitions()
    parts["client 2"] = Rows(parts["client 2"].inputs * torch.inf, parts["client 2"].targets)
    run = play(parts=parts, rounds=1)
    assert run.history.rounds[0].clients == ("client 0", "client 1", "client 3")
    (left,) = run.history.rounds[0].record.left_out
    assert left.client == "client 2"
    assert left.reason.startswith("its training failed: The loss became nan in epoch 1")
    assert all(bool(torch.isfinite(t).all()) for t in bits(run))


def test_the_proximal_term_pulls_towards_the_server():
    """Two steps by hand: the second one sees mu times the way gone so far."""
    inputs, labels = blobs(40, 3)
    rows, model = Rows(inputs.double(), labels), net().double()
    run = play(model, {"a": rows}, rounds=1, proximal=0.7, training={**WHOLE, "epochs": 2})
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        gradients = torch.autograd.grad(
            F.cross_entropy(model(rows.inputs), labels), list(model.parameters())
        )
        with torch.no_grad():
            for parameter, gradient, origin in zip(
                model.parameters(), gradients, start, strict=True
            ):
                parameter -= 0.3 * (gradient + 0.7 * (parameter - origin))
    assert_near(run, model, rtol=1e-10, atol=1e-12)


def test_the_proximal_term_is_not_in_the_losses_that_are_told():
    """At the second step, whose loss is told, both have gone the same way."""
    given = {"rounds": 1, "training": {**WHOLE, "epochs": 2}}
    plain, pulled = play(**given), play(proximal=1.0, **given)
    assert plain.history.rounds[0].training_loss == pulled.history.rounds[0].training_loss


def test_scaffold_with_one_whole_batch_is_the_plain_mean_of_gradients():
    """Corrections cancel: the sum over clients of (c - cᵢ) is 0 once all have taken part."""
    parts = {n: Rows(r.inputs.double(), r.targets) for n, r in partitions().items()}
    run = play(net().double(), parts, rounds=4, method="scaffold", training=WHOLE)
    model = net().double()
    for _ in range(4):
        losses = [F.cross_entropy(model(rows.inputs), rows.targets) for rows in parts.values()]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
    assert_near(run, model, rtol=1e-9, atol=1e-11)


def test_scaffold_clients_controls_average_to_the_servers(tmp_path):
    from alloykit.training.snapshot_file import load, under

    given = {"fraction": 0.5, "rounds": 5, "training": {"epochs": 2, "momentum": 0.5}}
    play(method="scaffold", snapshot=tmp_path, **given)
    _, tensors = load(tmp_path / "federation.safetensors")
    server = under(tensors, "state/control/")
    assert set(server) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, control in server.items():
        own = [tensors.get(f"control/{i}/{name}", torch.zeros_like(control)) for i in range(4)]
        torch.testing.assert_close(control, torch.stack(own).mean(0), rtol=1e-4, atol=1e-6)
        assert float(control.abs().max()) > 0


def test_kept_layers_stay_with_the_clients():
    model = net(nn.BatchNorm1d(6))
    run = play(model, keep=["1.*"], rounds=3, validated=True)
    names = {name for name in model.state_dict() if name.startswith("1.")}
    assert set(run.kept) == set(partitions())
    assert all(set(kept) == names for kept in run.kept.values())
    for name in names:
        assert torch.equal(run.model.state_dict()[name], model.state_dict()[name])
    means = [kept["1.running_mean"] for kept in run.kept.values()]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(means, 2))
    inputs, labels = blobs(300, 5)
    with torch.no_grad():
        each = [
            float((run.model_of(c)(inputs).argmax(1) == labels).double().mean()) for c in run.kept
        ]
    assert run.history.scores[-1] == pytest.approx(sum(each) / 4)
    # 18 + 21 numbers travel, the layer's 24 and its counter do not.
    assert run.history.rounds[0].bytes_down == 4 * (18 + 21) * 4
    assert torch.equal(
        run.model_of("client 1").state_dict()["0.weight"], run.model.state_dict()["0.weight"]
    )


def test_late_updates_come_later_and_count_less():
    run = play(method="fedbuff", rounds=8, stragglers=0.5, delay=2)
    late = {}
    for each in run.history.rounds:
        for left in each.record.left_out:
            assert left.reason in ("it is late by 1 round", "it is late by 2 rounds")
            due = each.number + int(left.reason.split()[-2])
            late[left.client, due] = each.number
    assert late
    for (client, due), since in late.items():
        # Meanwhile nobody asks the client for more.
        between = run.history.rounds[since : due - 1]
        assert all(client not in each.clients for each in between)
        if due <= 8:
            (counted,) = (
                c for c in run.history.rounds[due - 1].record.counted if c.client == client
            )
            others = run.history.rounds[due - 1].clients
            assert counted.coefficient == pytest.approx((1 + due - since) ** -0.5 / len(others))


def test_an_aggregator_without_staleness_leaves_late_updates_out():
    run = play(rounds=4, stragglers=0.5, delay=1)
    reasons = [left.reason for each in run.history.rounds for left in each.record.left_out]
    assert any(reason.startswith("it is of the old round") for reason in reasons)


def test_a_late_update_is_the_change_of_the_model_that_it_started_from():
    """One slow client alone: the server waits a round, then goes exactly its way."""
    parts = {"a": partitions()["client 1"]}
    slow = {"stragglers": 1.0, "delay": 1, "method": "fedbuff", "parameters": {"exponent": 0.0}}
    late = play(parts=parts, rounds=2, **slow)
    assert [r.clients for r in late.history.rounds] == [(), ("a",)]
    in_time = play(parts=parts, rounds=1, method="fedbuff")
    for found, wanted in zip(bits(late), bits(in_time), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_stragglers_train_fewer_epochs():
    seen: list[int] = []

    class Counting(nn.Linear):
        def forward(self, inputs):
            seen.append(self.training)
            return super().forward(inputs)

    parts = {f"{i}": Rows(*blobs(10, i)) for i in range(40)}
    play(Counting(2, 3), parts, rounds=1, stragglers=0.5, training={"epochs": 4})
    steps = sum(seen)
    # 20 clients of 4 epochs and 20 of 1 to 3: 120 steps expected, between 60 and 160.
    assert 90 < steps < 150


@pytest.mark.parametrize(
    "attack",
    ["sign_flip", {"kind": "noise", "strength": 30.0}, "nan"],
    ids=["sign_flip", "noise", "nan"],
)
def test_poisoned_clients_and_a_robust_rule(attack):
    parts = partitions(10, 600, concentration=100.0)
    attacks = dict.fromkeys(["client 1", "client 4", "client 8"], attack)
    given = {"parts": parts, "rounds": 4, "training": FAST, "validated": True}
    clean = play(**given).history.scores[-1]
    robust = play(**given, method="median", attacks=attacks).history.scores[-1]
    assert clean > 0.85
    assert robust > clean - 0.05
    open_door = play(**given, attacks=attacks, checks=Checks(values=False, norm_ratio=None))
    assert not open_door.history.scores[-1] > clean - 0.2


def test_nan_is_left_out_before_it_counts():
    run = play(attacks={"client 3": "nan"}, rounds=1)
    assert run.history.rounds[0].clients == ("client 0", "client 1", "client 2")
    assert all(bool(torch.isfinite(t).all()) for t in bits(run))


def test_flipped_labels_are_learned_by_the_one_who_flips():
    parts = {"a": Rows(*blobs(200, 0))}
    run = play(parts=parts, rounds=4, training=FAST, attacks={"a": "label_flip"})
    inputs, labels = blobs(300, 5)
    with torch.no_grad():
        found = run.model(inputs).argmax(1)
    assert float((found == 2 - labels).float().mean()) > 0.85


def test_absurd_claims_are_left_out_and_moderate_ones_weigh():
    absurd = play(attacks={"client 0": "claim"}, rounds=1)
    assert "client 0" not in absurd.history.rounds[0].clients
    some = play(attacks={"client 0": {"kind": "claim", "strength": 50}}, rounds=1)
    first = some.history.rounds[0].record.counted[0]
    assert first.num_examples == 50 * len(partitions()["client 0"])
    assert first.coefficient > 0.9


def test_your_own_measure_scores_the_rounds():
    wanted = Validation(lambda model: float(model[0].weight.sum()), "sum", higher_is_better=False)
    run = run_rounds(net(), partitions(), Federation(rounds=2), validation=wanted)
    assert run.history.metric == "sum"
    assert run.history.scores[-1] == pytest.approx(float(run.model[0].weight.detach().sum()))
    assert run.history.rounds[0].loss is None


def test_regression_is_scored_by_its_error():
    x = torch.linspace(-1, 1, 60).reshape(-1, 1)
    parts = {str(i): Rows(x[i::3], 2 * x[i::3]) for i in range(3)}
    run = run_rounds(
        nn.Linear(1, 1), parts, Federation(rounds=30, training={"epochs": 5}), task="regression",
        validation=as_examples((x, 2 * x), "validation"),
    )  # fmt: skip
    assert run.history.metric == "rmse"
    assert run.history.scores[-1] < 0.01
    assert run.history.rounds[-1].loss == pytest.approx(run.history.scores[-1] ** 2, rel=1e-4)


def test_feddf_learns_what_the_clients_say_together():
    inputs, _ = blobs(300, 9)
    server = from_arrays(inputs, torch.zeros(300, dtype=torch.long), "train")
    parts = partitions(concentration=0.2)
    given = {"parts": parts, "rounds": 3, "training": FAST, "validated": True}
    plain = play(**given)
    taught = play(**given, unlabelled=server, distillation={"epochs": 5, "learning_rate": 1e-2},
                  pooling="probabilities")  # fmt: skip
    assert taught.history.scores[-1] > 0.8
    assert not same(plain, taught)
    assert same(taught, play(**given, unlabelled=server, pooling="probabilities",
                             distillation={"epochs": 5, "learning_rate": 1e-2}))  # fmt: skip
    assert taught.history.moved == plain.history.moved


def test_feddf_does_not_listen_to_who_is_left_out():
    inputs, _ = blobs(100, 9)
    server = from_arrays(inputs, torch.zeros(100, dtype=torch.long), "train")
    run = play(
        unlabelled=server, distillation={"epochs": 1}, attacks={"client 0": "nan"}, method="median"
    )
    assert run.history.rounds[0].clients == ("client 1", "client 2", "client 3")
    assert all(bool(torch.isfinite(t).all()) for t in bits(run))
    given = {"unlabelled": server, "distillation": {"epochs": 1}, "rounds": 1}
    absurd = play(attacks={"client 0": "claim"}, **given)
    parts = partitions()
    del parts["client 0"]
    assert same(absurd, play(parts=parts, **given))


def test_frozen_parameters_stay():
    model = net()
    model[0].requires_grad_(False)
    run = play(model)
    assert torch.equal(run.model[0].weight, model[0].weight)
    assert not torch.equal(run.model[2].weight, model[2].weight)


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_the_module_inside_a_wrapper_is_trained(method):
    plain = play(method=method)
    wrapped = run_rounds(nn.DataParallel(net()), partitions(), Federation(rounds=2, method=method))
    assert all(not each.record.left_out for each in wrapped.history.rounds)
    assert all(map(torch.equal, bits(plain), bits(wrapped)))


def test_progress_counts_clients():
    told: list[tuple[str, int, int]] = []
    run_rounds(net(), partitions(), Federation(rounds=2), progress=lambda *said: told.append(said),
               validation=as_examples(blobs(50, 1), "validation"))  # fmt: skip
    assert [done for _, done, _ in told] == list(range(1, 9))
    assert {total for _, _, total in told} == {8}
    assert told[4][0].startswith("round 2 of 2, client 0, accuracy 0.")


def test_an_aggregator_that_is_built_is_taken_as_it_is():
    assert same(play(method=fedavg()), play())


def test_what_a_simulation_knows_need_not_be_said():
    for method in ("scaffold", "qfedavg"):
        assert len(play(method=method).history.rounds) == 2


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"attacks": {"client9": "nan"}}, InvalidParameter, "no client client9. Did you mean 'client 0'|no client"),
        ({"keep": ["bn*"]}, InvalidParameter, r"keep: 'bn\*' matches none of the model's 4 tensors"),
        ({"keep": ["*"]}, InvalidParameter, "keep: nothing is left to aggregate"),
        ({"clients_per_round": 9}, InvalidParameter, "clients_per_round is 9, and there are 4"),
        ({"method": "scaffold", "training": {"optimizer": "adamw"}}, InvalidParameter, "optimizer='sgd'"),
        ({"method": "fedavgg"}, UnknownName, "Did you mean 'fedavg'"),
        ({"method": "feddf"}, UnknownName, "give 'distillation' and unlabelled data"),
        ({"distillation": {}}, MissingInput, "'unlabelled' data is missing"),
        ({"parts": {}}, MissingInput, "at least one client"),
        ({"parts": {"a": Rows(torch.zeros(3, 2))}}, DataError, "no targets to train on:\n  a"),
        ({"parts": {"a": Rows(torch.zeros(3, 7), torch.zeros(3).long())}}, DataError,
         "The client a cannot train on its 3 examples: RuntimeError"),
        ({"attacks": {"client 0": "nan"}, "checks": Checks(on_bad="error")}, DataError, "Round 1 ended"),
    ],
)  # fmt: skip
def test_mistakes(settings, error, text):
    with pytest.raises(error, match=text):
        play(**settings)
