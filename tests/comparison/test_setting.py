"""What identifies a comparison, and what a recipe rebuilds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.comparison.assembly import assemble
from alloykit.comparison.candidates import chosen_candidates
from alloykit.comparison.setting import Member, Setting
from alloykit.comparison.trying import _merge_notes, try_candidate
from alloykit.data.examples import Examples, as_examples
from alloykit.errors import DataError, MissingInput
from alloykit.evaluation.batch_norm import update_batch_norm
from alloykit.evaluation.freezing import frozen_view
from alloykit.evaluation.metrics import METRICS
from study_files import blobs, small_net, trained


def examples(seed: int, name: Any, count: int = 80) -> Examples:
    return as_examples(blobs(count, seed), name)


def normed(seed: int) -> nn.Module:
    """A net with BatchNorm whose running statistics have seen data."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for _ in range(5):
            net(torch.tensor(blobs(64, seed)[0]))
    return net.eval()


@pytest.fixture
def setting() -> Setting:
    return Setting(
        members=(Member("a", trained(1)), Member("b", trained(2))),
        validation=examples(10, "validation"),
        test=examples(11, "test"),
        task="classification",
        metric=METRICS["accuracy"],
        batch_norm=examples(12, "train"),
        resamples=100,
    )


CHANGES: dict[str, Any] = {
    "members": lambda s: (Member("a", trained(1)), Member("b", trained(3))),
    "validation": lambda s: examples(20, "validation"),
    "test": lambda s: examples(21, "test"),
    "batch_norm": lambda s: examples(22, "train"),
    "base": lambda s: MemoryCheckpoint(small_net().state_dict(), "base"),
    "metric": lambda s: METRICS["f1"],
    "ordered": lambda s: True,
    "seed": lambda s: 1,
    "resamples": lambda s: 101,
}


@pytest.mark.parametrize("field", CHANGES)
def test_whatever_changes_the_rows_changes_the_fingerprint(setting: Setting, field: str) -> None:
    changed = replace(setting, **{field: CHANGES[field](setting)})
    before, after = setting.fingerprint(), changed.fingerprint()
    assert [key for key in before if before[key] != after[key]] == [field]


def test_the_same_setting_has_the_same_fingerprint(setting: Setting) -> None:
    again = replace(setting, title="another title")
    assert again.fingerprint() == setting.fingerprint()


def test_members_are_two_or_more_and_named_apart(setting: Setting) -> None:
    with pytest.raises(MissingInput, match="1 was given"):
        replace(setting, members=setting.members[:1])
    with pytest.raises(MissingInput, match="given twice: a"):
        replace(setting, members=(setting.members[0], setting.members[0]))


def test_labels_beyond_the_models_classes_are_refused(setting: Setting) -> None:
    inputs, labels = blobs(20, 5)
    labels[0] = 3
    bad = replace(setting, test=as_examples((inputs, labels), "test"))
    with pytest.raises(DataError, match="go up to 3, and the models tell 3 classes"):
        _ = bad.test_predictions


def test_a_view_shares_tensors_and_keeps_the_original_trainable() -> None:
    net = normed(0).train()
    view = frozen_view(net)
    assert not view.training
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in view.parameters())
    pairs = zip(net.state_dict().values(), view.state_dict().values(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)


def test_assembled_merges_use_the_weights_and_reestimate(setting: Setting) -> None:
    members = tuple(Member(name, normed(i)) for i, name in enumerate("ab"))
    bn = replace(setting, members=members)
    recipe = {
        "kind": "merge", "method": "linear", "parameters": {}, "members": ["a", "b"],
        "weights": [0.75, 0.25], "base": None, "batch_norm": None,
    }  # fmt: skip
    plain = assemble(recipe, bn).state_dict()
    a, b = (member.module.state_dict() for member in members)
    for name in ("0.weight", "1.running_var", "3.bias"):
        torch.testing.assert_close(plain[name], 0.75 * a[name] + 0.25 * b[name])
    mended = assemble({**recipe, "batch_norm": "train"}, bn)
    expected = assemble(recipe, bn)
    assert bn.batch_norm is not None
    update_batch_norm(expected, bn.batch_norm.batches())
    for name, tensor in mended.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert not torch.equal(mended.state_dict()["1.running_var"], plain["1.running_var"])
    assert list(_merge_notes({**recipe, "batch_norm": "train"}, mended)) == [
        "BatchNorm statistics re-estimated on train inputs"
    ]


def test_a_soup_of_one_member_is_that_member_statistics_and_all(setting: Setting) -> None:
    good, bad = normed(0), normed(1)
    inputs = torch.tensor(blobs(200, 10)[0])
    labels = good(inputs).argmax(1).numpy()
    apart = replace(
        setting,
        members=(Member("good", good), Member("bad", bad)),
        validation=as_examples((inputs.numpy(), labels), "validation"),
    )
    (candidate,) = [c for c in chosen_candidates(apart, ["greedy"]) if c.method == "greedy"]
    trial = try_candidate(candidate, apart)
    assert trial.recipe["weights"] == [1.0, 0.0]
    for name, tensor in trial.model.state_dict().items():
        assert torch.equal(tensor, good.state_dict()[name]), name
    assert np.allclose((trial.validation.argmax(1).numpy() == labels).mean(), 1.0)
