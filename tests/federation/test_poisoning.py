from __future__ import annotations

import pytest
import torch

from alloykit.errors import DataError, InvalidParameter
from alloykit.federation.poisoning import Attack, claimed, poisoned_rows, poisoned_tensors
from alloykit.training.rows import Rows

SERVER = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(5000)}
CLIENT = {"a": torch.tensor([1.5, 1.0]), "b": torch.ones(5000)}


def test_the_sign_is_flipped_around_the_server():
    found = poisoned_tensors(CLIENT, SERVER, Attack("sign_flip"), 0)
    assert found["a"].tolist() == [1.0 - 10 * 0.5, 2.0 + 10 * 1.0]
    assert bool((found["b"] == -10).all())


def test_noise_is_around_the_server_with_a_stream_for_every_tensor():
    found = poisoned_tensors(CLIENT, SERVER, Attack("noise", 3.0), 1)
    assert float(found["b"].std()) == pytest.approx(3.0, rel=0.05)
    assert float(found["b"].mean()) == pytest.approx(0.0, abs=0.2)
    assert torch.equal(found["b"], poisoned_tensors(CLIENT, SERVER, Attack("noise", 3.0), 1)["b"])
    assert not torch.equal(
        found["b"], poisoned_tensors(CLIENT, SERVER, Attack("noise", 3.0), 2)["b"]
    )
    twice = poisoned_tensors(
        {"x": CLIENT["b"], "y": CLIENT["b"]},
        {"x": SERVER["b"], "y": SERVER["b"]},
        Attack("noise"),
        1,
    )
    assert not torch.equal(twice["x"], twice["y"])


def test_nan_and_the_attacks_that_leave_tensors_alone():
    assert all(
        bool(t.isnan().all()) for t in poisoned_tensors(CLIENT, SERVER, Attack("nan"), 0).values()
    )
    for attack in (None, Attack("label_flip"), Attack("claim")):
        assert poisoned_tensors(CLIENT, SERVER, attack, 0) == CLIENT


def test_labels_are_flipped_and_ignored_ones_stay():
    rows = Rows(torch.zeros(4, 1), torch.tensor([0, 3, 9, -100]))
    assert poisoned_rows(rows, Attack("label_flip"), 10).targets.tolist() == [9, 6, 0, -100]
    assert rows.targets.tolist() == [0, 3, 9, -100]
    assert poisoned_rows(rows, Attack("nan"), 10) is rows
    with pytest.raises(DataError, match="label_flip flips classes"):
        poisoned_rows(Rows(torch.zeros(2, 1), torch.zeros(2)), Attack("label_flip"), 2)


def test_claims():
    assert claimed(20, Attack("claim", 50)) == 1000
    assert claimed(20, Attack("nan")) == claimed(20, None) == 20


def test_attacks_are_taken_in_several_forms():
    assert Attack.of("claim") == Attack("claim", 1e6) == Attack.of({"kind": "claim"})
    assert Attack.of(Attack("nan").to_json()) == Attack("nan")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("signflip", "There is no attack 'signflip'. Did you mean 'sign_flip'?"),
        ({"kind": "nan", "strength": 3}, "The attack nan has no strength"),
        ({"kind": "noise", "strength": 0}, "The strength of noise must be above 0. Got 0."),
        ({"strength": 1}, "has no kind"),
        ({"kind": "nan", "power": 1}, "Got 'power', too"),
    ],
)
def test_mistakes(given, text):
    with pytest.raises(InvalidParameter, match=text):
        Attack.of(given)
