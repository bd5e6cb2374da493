"""Out-of-fold rows: the owner's column alone is retrained, and memorised noise stays out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alloykit.data.examples import as_examples
from alloykit.errors import DataError, DataLeak, InvalidParameter
from alloykit.fusion.collecting import gather
from alloykit.fusion.concat import concat
from alloykit.fusion.out_of_fold import gather_out_of_fold, out_of_fold
from alloykit.fusion.parting import fold_rows


class Nearest(nn.Module):
    """Says what the nearest example that it has seen was labelled: it memorises everything."""

    def __init__(self, inputs, targets, classes=2):
        super().__init__()
        self.register_buffer("seen", inputs.clone())
        self.register_buffer("said", nn.functional.one_hot(targets, classes).float())
        self.head = nn.Identity()

    def forward(self, x):
        nearest = torch.cdist(x, self.seen).argmin(1)
        return self.head(4 * self.said[nearest])


class Rule(nn.Module):
    """Knows the rule behind the labels, up to how sure it is."""

    def __init__(self, *_):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
            self.layer.bias.zero_()

    def forward(self, x):
        return self.layer(x)


def noisy(count, seed, noise):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator)
    y = (x[:, 0] > 0).long()
    wrong = torch.rand(count, generator=generator) < noise
    return x, torch.where(wrong, 1 - y, y)


def test_only_the_owners_column_is_retrained_once_per_fold():
    parts = {"a": noisy(10, 0, 0.3), "b": noisy(15, 1, 0.3)}
    members = {name: Nearest(*part) for name, part in parts.items()}
    asked = []

    def retrain(name, inputs, targets):
        asked.append((name, len(inputs)))
        return Nearest(inputs, targets)

    data = out_of_fold(members, parts, retrain, folds=5)
    assert asked == [("a", 8)] * 5 + [("b", 12)] * 5
    x = torch.cat([part[0] for part in parts.values()])
    assert torch.equal(data.targets, torch.cat([part[1] for part in parts.values()]))
    # The other's column is the member's own answer.
    assert_close(data.members[1][:10], members["b"](x[:10]).log_softmax(-1))
    assert_close(data.members[0][10:], members["a"](x[10:]).log_softmax(-1))
    # The owner's column is that of a copy that had not seen the row.
    for rows in fold_rows(parts["a"][1], 5, 0):
        rest = torch.tensor([i for i in range(10) if i not in rows])
        copy = Nearest(parts["a"][0][rest], parts["a"][1][rest])
        assert_close(data.members[0][rows], copy(x[rows]).log_softmax(-1))


def test_a_leaky_head_looks_good_on_its_rows_and_is_worse_on_test():
    parts = {"memory": noisy(300, 0, 0.3), "rule": noisy(60, 1, 0.3)}
    members = {"memory": Nearest(*parts["memory"]), "rule": Rule()}

    def retrain(name, inputs, targets):
        return Nearest(inputs, targets) if name == "memory" else Rule()

    clean = gather_out_of_fold(members, parts, retrain)
    union = tuple(torch.cat(pair) for pair in zip(*parts.values(), strict=True))
    leaky = gather(members, as_examples(union, "train"))
    test = gather(members, as_examples(noisy(500, 2, 0.0), "test"))

    def accuracy(head, rows):
        return float((head(rows.data.members, None).argmax(1) == rows.data.targets).float().mean())

    by_leak, by_fold = (concat().fit(r.data, r.shape).module for r in (leaky, clean))
    assert accuracy(by_leak, leaky) > 0.9 > accuracy(by_fold, clean)
    assert accuracy(by_fold, test) > accuracy(by_leak, test) + 0.1


def test_features_and_context_of_the_owner_are_the_copies_too():
    parts = {"a": noisy(10, 0, 0.3), "b": noisy(10, 1, 0.3)}
    members = {name: Nearest(*part) for name, part in parts.items()}
    found = gather_out_of_fold(
        members,
        parts,
        lambda name, x, y: Nearest(x, y),
        folds=2,
        source={"a": "head", "b": "head"},
        context="features",
    )
    assert torch.equal(found.data.context, torch.cat(found.data.members, 1))
    assert_close(found.data.members[0].log_softmax(-1), found.outputs[0])
    assert not torch.equal(found.data.members[0][:10], members["a"](parts["a"][0]))


def test_tokens_and_values_are_written_to_their_rows():
    ids, labels = torch.arange(24).reshape(8, 3) % 7, torch.arange(24).reshape(8, 3) % 2
    labels[0, 0] = -100
    told = []

    def words(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Embedding(7, 2))

    def retrain(name, inputs, targets):
        told.append(tuple(inputs.shape))
        return words(5)

    found = gather_out_of_fold({"w": words(0)}, {"w": (ids, labels)}, retrain, 2, task="tokens")
    assert told == [(4, 3), (4, 3)]
    expected = words(5)(ids).log_softmax(-1).flatten(0, 1)[1:]
    assert_close(found.data.members[0], expected.detach())
    x, fixed = torch.randn(8, 2), nn.Linear(2, 1)
    values = gather_out_of_fold(
        {"v": nn.Linear(2, 1)}, {"v": (x, x[:, 0])}, lambda *_: fixed, 2, task="regression"
    )
    assert_close(values.data.members[0], fixed(x).detach())
    assert values.data.targets.shape == (8, 1)


def test_folds_hold_equal_parts_of_every_class_and_all_rows_once():
    targets = torch.tensor([0] * 10 + [1] * 5 + [2] * 5)
    folds = fold_rows(targets, 5, seed=3)
    assert sorted(torch.cat(folds).tolist()) == list(range(20))
    for rows in folds:
        assert targets[rows].bincount().tolist() == [2, 1, 1]
        assert rows.tolist() == sorted(rows.tolist())
    assert [r.tolist() for r in folds] == [r.tolist() for r in fold_rows(targets, 5, seed=3)]
    values = fold_rows(torch.randn(7), 2, seed=0)
    assert sorted(torch.cat(values).tolist()) == list(range(7))


def test_examples_in_two_partitions_are_left_out():
    (x, y), other = noisy(20, 0, 0.0), noisy(20, 1, 0.0)
    shared = (torch.cat([other[0], x[:3]]), torch.cat([other[1], y[:3]]))
    members = {"a": Rule(), "b": Rule()}
    found = gather_out_of_fold(
        members, {"a": (x, y), "b": shared}, lambda name, x, y: Rule(), folds=4
    )
    assert len(found.data.targets) == 17 + 20
    assert found.examples == 37
    with pytest.raises(DataLeak, match="not disjoint") as caught:
        out_of_fold(members, {"a": (x, y), "b": (x, y)}, lambda *_: Rule(), folds=4)
    assert "a: 0 of 20 examples" in str(caught.value)


def test_bad_requests_are_refused_before_any_training():
    def never(*_):
        raise AssertionError

    members = {"a": Rule(), "b": Rule()}
    with pytest.raises(InvalidParameter) as caught:
        out_of_fold(members, {"a": noisy(20, 0, 0), "c": noisy(20, 0, 0)}, never, folds=1)
    for part in ("'b' has no partition", "'c' is no member", "at least 2. Got 1"):
        assert part in str(caught.value)
    small = {"a": noisy(9, 0, 0), "b": noisy(20, 1, 0)}
    with pytest.raises(DataError, match=r"10 examples each:\n  a: 9 examples"):
        out_of_fold(members, small, never)


def test_copies_unlike_their_member_are_refused():
    members, parts = {"a": Rule()}, {"a": noisy(20, 0, 0)}
    with pytest.raises(DataError, match="a gives 3 outputs where a gives 2"):
        out_of_fold(members, parts, lambda *_: nn.Linear(2, 3))
    with pytest.raises(DataError, match="returned a NoneType for a"):
        out_of_fold(members, parts, lambda *_: None)
