from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import alloykit
import digits_samples as digits
from alloykit.data.examples import as_examples
from alloykit.errors import InvalidParameter, MissingInput, OutputExists, UnknownName
from alloykit.evaluation.fisher import fisher_diagonal
from alloykit.evaluation.gram import gram_matrices

TRAIN = digits.splits()["train"]


def model():
    return digits.members()["tuned 0"]


def test_it_returns_what_the_kind_says():
    split = as_examples(TRAIN, "train")
    torch.testing.assert_close(
        alloykit.stats(model(), TRAIN, "gram"), gram_matrices(model(), split)
    )
    found = alloykit.stats(model(), TRAIN, "fisher")
    torch.testing.assert_close(found, fisher_diagonal(model(), split))
    sampled = alloykit.stats(model(), TRAIN, "fisher", labels="sampled", seed=3)
    torch.testing.assert_close(sampled, fisher_diagonal(model(), split, labels="sampled", seed=3))


def test_a_number_of_examples_is_spread_over_all():
    found = alloykit.stats(model(), TRAIN, "gram", examples=40)
    rows = as_examples((TRAIN[0][::10], TRAIN[1][::10]), "train")
    torch.testing.assert_close(found, gram_matrices(model(), rows))


def test_a_file_says_where_it_came_from(tmp_path):
    target = tmp_path / "own.safetensors"
    source = alloykit.save_checkpoint(model(), tmp_path / "model.safetensors")
    path = alloykit.stats(
        source, TRAIN, "gram", module=digits.network(False), examples=50, output=target
    )
    assert path == target
    held = alloykit.open_checkpoint(path)
    expected = alloykit.stats(model(), TRAIN, "gram", examples=50)
    assert all(torch.equal(held.read(name), tensor) for name, tensor in expected.items())
    record = json.loads(held.metadata["alloykit.stats"])
    assert record["kind"] == "gram"
    assert record["examples"] == 50
    assert record["model"].startswith("sha256:")
    assert record["data"].startswith("blake2b:")
    with pytest.raises(OutputExists):
        alloykit.stats(
            model(), TRAIN, "gram", output=target, progress=lambda *_: pytest.fail("it began")
        )
    again = alloykit.stats(model(), TRAIN, "fisher", output=target, overwrite=True)
    record = json.loads(alloykit.open_checkpoint(again).metadata["alloykit.stats"])
    assert (record["kind"], record["labels"], record["seed"]) == ("fisher", "exact", 0)


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_files_and_tensors_merge_to_the_same(tmp_path, kind):
    method = {"fisher": "fisher", "gram": "regmean"}[kind]
    models = {name: digits.members()[name] for name in ("tuned 0", "tuned 1")}
    inputs, targets = TRAIN
    data = [(inputs[:200], targets[:200]), (inputs[200:], targets[200:])]
    held = alloykit.stats(models, data, kind)
    files = alloykit.stats(models, data, kind, output=tmp_path / "stats")
    assert [file.name for file in files] == ["tuned-0.safetensors", "tuned-1.safetensors"]
    one, other = (alloykit.merge(models, method, stats={kind: each}) for each in (held, files))
    mean = alloykit.average(models)
    assert torch.equal(one[0].weight, other[0].weight)
    assert not torch.allclose(one[0].weight, mean[0].weight, atol=1e-5)


def test_through_merged_layers_it_is_recorded(tmp_path):
    models = [digits.members()[name] for name in ("tuned 0", "tuned 1")]
    inputs, targets = TRAIN
    data = [(inputs[:200], targets[:200]), (inputs[200:], targets[200:])]
    given = {"reduce_non_diagonal": 0.5}
    files = alloykit.stats(
        models, data, "gram", through_merged=True, parameters=given, output=tmp_path
    )
    record = json.loads(alloykit.open_checkpoint(files[1]).metadata["alloykit.stats"])
    assert record["through"] == "merged"
    assert record["parameters"] == given
    plain = alloykit.stats(models, data, "gram")
    held = alloykit.open_checkpoint(files[1])
    assert torch.equal(held.read("0.weight"), plain[1]["0.weight"])
    assert not torch.allclose(held.read("2.weight"), plain[1]["2.weight"], rtol=1e-3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_tied_names_share_one_diagonal(tmp_path):
    data = (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 3], [4, 0]]))
    found = alloykit.stats(Tied(), data, "fisher", task="tokens")
    assert found["embed.weight"] is found["head.weight"]
    target = alloykit.stats(
        Tied(), data, "fisher", task="tokens", output=tmp_path / "tied.safetensors"
    )
    specs = alloykit.open_checkpoint(target).specs()
    assert specs["embed.weight"].place == specs["head.weight"].place
    models = [Tied(), Tied()]
    merged = alloykit.merge(
        models,
        "fisher",
        stats={"fisher": alloykit.stats(models, [data, data], "fisher", task="tokens")},
    )
    assert merged.head.weight is merged.embed.weight


def test_what_cannot_be_done_is_said(tmp_path):
    with pytest.raises(
        UnknownName, match=r"There are no statistics 'fischer'\. Did you mean 'fisher'"
    ):
        alloykit.stats(model(), TRAIN, "fischer")
    with pytest.raises(MissingInput, match="Statistics run the model: pass module="):
        alloykit.stats(model().state_dict(), TRAIN, "gram")
    with pytest.raises(MissingInput, match="2 models and 1 data sets were given"):
        alloykit.stats([model(), model()], [TRAIN], "gram")
    with pytest.raises(InvalidParameter, match="Only Gram matrices are collected through merged"):
        alloykit.stats([model()], [TRAIN], "fisher", through_merged=True)
    with pytest.raises(InvalidParameter, match="spread: the count must be at least 1"):
        alloykit.stats(model(), TRAIN, "gram", examples=0)
    with pytest.raises(InvalidParameter, match=r"ends in \.safetensors"):
        alloykit.stats(model(), TRAIN, "gram", output=tmp_path / "stats.pt")
