"""The verb fuse: heads over frozen members, leaks, checks, files."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from plain_torch import assert_same_in_plain_torch
from torch import nn
from torch.testing import assert_close

import alloykit
from alloykit.api.fusing import fuse
from alloykit.checkpoints.exporting import load_exported, save_exported
from alloykit.data.examples import from_arrays
from alloykit.ensembling.adapting import adapted
from alloykit.errors import DataError, InvalidParameter, MissingInput, UnknownName
from alloykit.fusion.concat import concat
from alloykit.registry import fusion_heads
from alloykit.training.settings import Training

HEADS = [entry.name for entry in fusion_heads.entries()]
QUICK = {"epochs": 5}


class Member(nn.Module):
    """Knows one of three classes well, in a module with BatchNorm and dropout."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.norm, self.drop, self.head = nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.1, 0.1)
            self.head.weight.zero_()
            self.head.weight[seed % 3, seed % 3] = 3.0
            self.head.weight += 0.3 * torch.randn(3, 3)

    def forward(self, x):
        return self.head(self.drop(self.norm(x)))


def data(count=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=generator)
    x = nn.functional.one_hot(y, 3).float() + 0.5 * torch.randn(count, 3, generator=generator)
    return x, y


def members():
    return {"a": Member(0), "b": Member(1), "c": Member(2)}


def bytes_of(modules):
    return {
        (name, key): tensor.clone()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def unchanged(modules, before):
    return all(torch.equal(tensor, before[key]) for key, tensor in bytes_of(modules).items())


def quick(head):
    known = fusion_heads.entry(head).parameters
    return {name: value for name, value in QUICK.items() if name in known}


@pytest.mark.parametrize("head", HEADS)
def test_members_keep_every_byte_and_flag_whatever_the_head(head):
    modules = members()
    modules["b"].train()
    before = bytes_of(modules)
    fused = fuse(modules, head, validation=data(), **quick(head))
    fused.train()
    fused(data()[0])
    assert unchanged(modules, before)
    assert modules["b"].training
    assert all(p.requires_grad for m in modules.values() for p in m.parameters())
    assert not any(p.requires_grad for p in fused.parameters())
    assert_close(fused(data()[0]).exp().sum(-1), torch.ones(150))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_saved_in_a_file_that_needs_neither_alloykit_nor_its_source(head, tmp_path):
    x, y = data()
    fused = fuse(members(), head, validation=(x, y), **quick(head))
    save_exported(fused, tmp_path / "fused.pt2", x)
    assert_close(load_exported(tmp_path / "fused.pt2")(x), fused(x), rtol=0, atol=1e-6)
    if head == "attention":
        assert_same_in_plain_torch(tmp_path / "fused.pt2", x, fused(x))


def test_the_default_head_beats_members_and_says_so():
    fused = fuse(members(), validation=data(300))
    x, y = data(500, seed=1)
    accuracy = lambda model: float((model(x).argmax(1) == y).float().mean())  # noqa: E731
    best = max(accuracy(member.eval()) for member in members().values())
    assert accuracy(fused) > best + 0.1
    report = fused.report
    assert report.check.how == "cross-fitted"
    assert report.check.examples == report.examples == 300
    assert "log_loss" in report.check.beaten
    assert report.verdict.startswith("concat beats the plain mean on log_loss")
    assert report.check.improvement["log_loss"].low > 0
    gain = report.check.mean["log_loss"] - report.check.scores["log_loss"]
    assert report.check.improvement["log_loss"].value == pytest.approx(gain)
    assert abs(accuracy(fused) - report.check.scores["accuracy"]) < 0.06
    told = json.loads(json.dumps(report.to_json()))
    assert told["chosen"]
    assert told["check"]["how"] == "cross-fitted"
    assert "plain mean" in str(report)
    assert report.seconds > 0


def test_a_head_that_learned_from_noise_does_not_beat_the_mean():
    x, _ = data(120)
    noise = torch.randint(0, 3, (120,), generator=torch.Generator().manual_seed(5))
    blind = [nn.Linear(3, 3) for _ in range(2)]
    for member in blind:
        nn.init.zeros_(member.weight)
        nn.init.zeros_(member.bias)
    report = fuse(blind, "concat", validation=(x, noise)).report
    assert report.verdict == "concat does not beat the plain mean."


def test_the_same_seed_gives_the_same_bits():
    one, other = (fuse(members(), "attention", validation=data(), **QUICK) for _ in range(2))
    for first, second in zip(one.head.parameters(), other.head.parameters(), strict=True):
        assert torch.equal(first, second)
    assert one.report.check == other.report.check


def test_examples_that_members_were_trained_on_are_reported():
    x, y = data()
    train = {"a": (x[:10], y[:10]), "b": data(20, seed=3), "c": (x[5:7], y[5:7])}
    with pytest.warns(UserWarning, match="10 of 150 validation examples") as caught:
        fused = fuse(members(), validation=(x, y), train=train)
    assert "test_fusing_verb" in caught[0].filename
    assert [note.split(",")[0] for note in fused.report.notes] == [
        "leak: 10 of 150 validation examples are in the training data of a",
        "leak: 2 of 150 validation examples are in the training data of c",
    ]
    clean = fuse(members(), validation=(x, y), train=data(20, seed=3))
    assert clean.report.notes == ()


def test_features_layers_and_context_reach_the_head():
    x, y = data()
    hidden = fuse(members(), "concat", validation=(x, y), source="features")
    assert hidden.layers == ("head:input",) * 3
    assert hidden.report.check.mean
    named = fuse(members(), validation=(x, y), source={"a": "norm", "b": "drop", "c": "head"})
    assert named.head is not hidden.head
    gated = fuse(members(), "gated", validation=(x, y), **quick("gated"))
    assert gated.context == "inputs"
    assert gated.attention(x).shape == (150, 3)
    assert gated.report.reliance.attention is not None
    told = fuse(members(), "attention", validation=(x, y), context="features", **QUICK)
    assert told.context == "features"
    assert told.description()["parameters"]["context"] is True
    assert told.attention(x).shape == (150, 3)
    blind = fuse(members(), "attention", validation=(x, y), **QUICK)
    assert blind.context == "none"


def test_out_of_fold_rows_train_the_head_and_validation_checks_it():
    x, y = data(90)
    train = {name: (x[place::3], y[place::3]) for place, name in enumerate("abc")}
    asked = []

    def retrain(name, inputs, targets):
        asked.append((name, len(inputs), len(targets)))
        return copy.deepcopy(members()[name])

    held = data(60, seed=7)
    fused = fuse(members(), validation=held, train=train, out_of_fold=retrain, folds=3)
    assert asked == [(name, 20, 20) for name in "abc" for _ in range(3)]
    assert fused.report.examples == 90
    assert (fused.report.check.how, fused.report.check.examples) == ("held out", 60)
    alone = fuse(members(), train=train, out_of_fold=retrain, folds=2)
    assert alone.report.check.how == "cross-fitted"
    ours, theirs = fused.head(*_rows(fused, x)), alone.head(*_rows(alone, x))
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def _rows(fused, x):
    rows, context, _ = fused.rows(x)
    return rows, context


def test_fine_tuning_trains_copies_and_is_checked_on_what_it_did_not_see():
    modules = members()
    before = bytes_of(modules)
    x, y = data(200)
    training = Training(epochs=2, learning_rate=1e-2)
    fused = fuse(modules, validation=(x, y), finetune=training)
    assert unchanged(modules, before)
    assert not torch.equal(fused.members[0].head.weight, modules["a"].head.weight)
    assert torch.equal(fused.members[0].norm.running_mean, modules["a"].norm.running_mean)
    assert (fused.report.check.how, fused.report.check.examples) == ("held out", 40)
    assert fused.report.examples == 200
    assert len(fused.report.history) >= 2


def test_augmentation_computes_members_anew_and_leaves_them():
    modules = members()
    seen = []

    def augment(inputs):
        seen.append(len(inputs))
        return inputs + 0.01 * torch.randn_like(inputs)

    plain = fuse(modules, validation=data(100))
    fused = fuse(modules, validation=data(100), augment=augment)
    assert sum(seen) == 10 * (80 + 100)
    assert torch.equal(fused.members[0].head.weight, modules["a"].head.weight)
    rows, context, _ = plain.rows(data()[0])
    assert not torch.equal(fused.head(rows, context), plain.head(rows, context))


def test_regression_tokens_and_dictionaries():
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    target = x @ torch.tensor([1.0, 2.0, 0.0, 0.0])
    values = [nn.Linear(4, 1), nn.Linear(4, 1)]
    fused = fuse(values, validation=(x, target), task="regression")
    assert fused(x).shape == (60, 1)
    assert set(fused.report.check.scores) == {"rmse"}

    class Words(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 5)

        def forward(self, input_ids):
            return SimpleNamespace(logits=self.head(self.embed(input_ids)))

    ids = torch.randint(0, 9, (24, 6))
    labels = ids % 5
    labels[:, -1] = -100
    fused = fuse([Words(0), Words(1)], validation=({"input_ids": ids}, labels), task="tokens")
    assert fused(input_ids=ids).shape == (24, 6, 5)
    assert fused.report.check.examples == 24
    assert "log_loss" in fused.report.check.beaten


def test_adapted_members_and_other_dtypes_are_fused_on_raw_inputs():
    x, y = data(120)
    raw = x * 50 + 300
    shifted = [adapted(m, mean=300.0, std=50.0) for m in (Member(0), Member(1).double())]
    partial = adapted(nn.Linear(3, 2), classes=[0, 2], common=3)
    fused = fuse([*shifted, partial], validation=(raw, y))
    assert_close(fused(raw[:5]), fused(raw[:5].double()))
    assert fused.report.check.mean


def test_a_built_head_is_taken_as_it_is():
    fused = fuse(members(), concat(pull=3.0), validation=data())
    assert fused.description()["parameters"]["pull"] == 3.0
    with pytest.raises(InvalidParameter, match="is built already"):
        fuse(members(), concat(), validation=data(), pull=3.0)


def test_thin_classes_are_noted_and_small_splits_refused():
    x, y = data(100)
    y[y == 2] = 0
    y[0] = 2
    notes = fuse(members(), validation=(x, y)).report.notes
    assert notes == ("Fewer than two examples of the classes 2: the head learned little of them.",)
    with pytest.raises(DataError, match="too small for a fusion head: 19 examples, and 20"):
        fuse(members(), validation=data(19))


def test_mistakes_come_before_any_member_runs():
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError

    pair = [Never(), Never()]
    with pytest.raises(MissingInput, match="at least two models"):
        fuse([Never()], validation=data())
    with pytest.raises(MissingInput, match="pass validation="):
        fuse(pair)
    with pytest.raises(UnknownName, match=r"no fusion head 'conact'\. Did you mean 'concat'"):
        fuse(pair, "conact", validation=data())
    with pytest.raises(InvalidParameter, match="has no parameter 'pul'"):
        fuse(pair, validation=data(), pul=3)
    with pytest.raises(InvalidParameter, match="does not look at a context"):
        fuse(pair, validation=data(), context="inputs")
    with pytest.raises(InvalidParameter) as caught:
        fuse(
            pair, "log_pool", source="features", task="regression", out_of_fold=print, finetune=True
        )
    text = str(caught.value)
    for part in ("not regression", "not features", "member -> partition", "go with validation"):
        assert part in text


def test_it_is_among_what_compare_and_exporting_know(tmp_path):
    fused = fuse(members(), validation=data())
    save_exported(fused, tmp_path / "fused.pt2", data()[0])
    assert fused.description()["head"] == "concat"
    assert isinstance(fused, nn.Module)
    average = alloykit.ensemble({"fused": fused, "a": members()["a"]})
    assert average(data()[0]).shape == (150, 3)


@pytest.mark.parametrize("source", ["outputs", "features"])
def test_models_of_transformers_are_fused_by_name_of_their_inputs(source):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        num_labels=3,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    torch.manual_seed(0)
    pair = [transformers.BertForSequenceClassification(config) for _ in range(2)]
    ids = torch.randint(1, 50, (30, 5))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    fused = fuse(pair, validation=(batch, ids[:, 0] % 3), source=source)
    assert fused(**batch).shape == (30, 3)
    assert fused.layers == (("classifier:input",) * 2 if source == "features" else None)


def test_classes_are_called_by_the_names_that_the_data_has():
    x, y = data()
    split = from_arrays(x, y, "validation", class_names=("ant", "bee", "cat"))
    report = fuse(members(), validation=split).report
    assert report.reliance.classes == ("ant", "bee", "cat")
