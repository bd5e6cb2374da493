from __future__ import annotations

import json

import pytest

from alloykit.errors import InvalidParameter
from alloykit.federation.checks import Checks
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.poisoning import Attack
from alloykit.federation.settings import LOCAL, Federation, local_training
from alloykit.training.settings import Training


def test_settings_survive_json():
    given = Federation(
        rounds=3, method="trimmed_mean", parameters={"trim": 0.2}, fraction=0.5, keep=["*.bn*"],
        training=Training(epochs=2, momentum=0.9, optimizer="sgd"), checks=Checks(max_norm=3.0),
        attacks={"a": "nan", "b": {"kind": "noise", "strength": 2}}, distillation=Training(epochs=1),
        stragglers=0.1, delay=2, drop_out=0.2, proximal=0.01, seed=2**60,
    )  # fmt: skip
    assert Federation.of(json.loads(json.dumps(given.to_json()))) == given
    assert given.attacks["b"] == Attack("noise", 2)


def test_an_aggregator_that_is_built_is_written_by_name():
    given = Federation(method=as_aggregator("fedavgm", {"server_momentum": 0.5})).to_json()
    assert given["method"] == "fedavgm"
    assert given["parameters"]["server_momentum"] == 0.5


def test_what_is_not_said_of_the_clients_training_is_as_in_local():
    assert Federation().training == LOCAL
    given = local_training({"epochs": 4, "momentum": 0.9})
    assert (given.epochs, given.batch_size, given.optimizer, given.schedule) == (
        4,
        32,
        "sgd",
        "constant",
    )
    adamw = local_training({"optimizer": "adamw"})
    assert (adamw.learning_rate, adamw.weight_decay, adamw.epochs) == (2e-3, 0.01, 1)


def test_every_mistake_is_listed_at_once():
    with pytest.raises(InvalidParameter) as caught:
        Federation(
            rounds=0, method=3, fraction=0, clients_per_round=1.5, training={"epochs": 0, "patience": 2},
            checks={"min_client": 2}, proximal=-1, keep="bn*", drop_out=1, stragglers=2, delay=-1,
            attacks={"a": "signflip"}, distillation={"epoch": 1}, temperature=0, pooling="votes", seed=-1,
        )  # fmt: skip
    for line in (
        "'rounds' must be a whole number of at least 1. Got 0.",
        "'method' must be a name or an aggregator. Got 3.",
        "'fraction' must be a number in (0, 1]. Got 0.",
        "'clients_per_round' must be a whole number of at least 1. Got 1.5.",
        "training: 'epochs' must be a whole number of at least 1. Got 0.",
        "checks: 'min_client'. Did you mean 'min_clients'?",
        "'proximal' must be a number at least 0. Got -1.",
        "keep: 'keep' must be several globs, in a list. Got 'bn*'.",
        "'drop_out' must be a number in [0, 1). Got 1.",
        "'stragglers' must be a number in [0, 1]. Got 2.",
        "'delay' must be a whole number of at least 0. Got -1.",
        "attacks: There is no attack 'signflip'. Did you mean 'sign_flip'?",
        "distillation: 'epoch'. Did you mean 'epochs'?",
        "'temperature' must be a number above 0. Got 0.",
        "'pooling' must be logits or probabilities. Got 'votes'.",
        "'seed' must be a whole number of at least 0. Got -1.",
    ):
        assert line in str(caught.value), line


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"fraction": 0.5, "clients_per_round": 2}, "'fraction' and 'clients_per_round' exclude"),
        ({"training": {"patience": 2}}, "training: clients have no validation data"),
        ({"stragglers": 0.5}, "'stragglers' with delay=0 train fewer epochs"),
        ({"distillation": {"patience": 2}}, "distillation: it is on unlabelled data"),
        ({"proximal": 30.0}, "'proximal' times the clients' learning_rate must be below 1"),
        ({"method": as_aggregator("fedavg"), "parameters": {"a": 1}}, "'parameters' are for a method by name"),
        ({"attacks": ["a"]}, "'attacks' must be a mapping"),
    ],
)  # fmt: skip
def test_contradictions(given, text):
    with pytest.raises(InvalidParameter, match=text):
        Federation(**given)


def test_a_name_that_is_no_setting():
    with pytest.raises(InvalidParameter, match=r"(?s)'round'\. Did you mean 'rounds'\?.*drop_out"):
        Federation.of({"round": 3})
