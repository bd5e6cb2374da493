"""``alloykit.aggregate``: models that clients trained apart -> one, in the form they came in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import alloykit
from alloykit.errors import (
    CheckpointError,
    DataError,
    InvalidParameter,
    MissingInput,
    OutputExists,
    UnknownName,
)
from alloykit.federation.checks import Checks
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.update import Update
from client_samples import honest, model, same_bits

SERVER = model()
CLIENTS = {each.client: each.model for each in honest(SERVER)}
COUNTS = {name: 10.0 + i for i, name in enumerate(CLIENTS)}


def w(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values)}


def linear(value: float, inputs: int = 2) -> nn.Linear:
    made = nn.Linear(inputs, 1)
    with torch.no_grad():
        made.weight.fill_(value)
        made.bias.fill_(value)
    return made


def test_models_by_name_in_order_and_one_by_one_are_the_same():
    wanted = alloykit.aggregate(SERVER, CLIENTS, num_examples=COUNTS)
    given = [Update(name, tensors) for name, tensors in CLIENTS.items()]
    for updates, counts in (
        (given, COUNTS),
        (given, list(COUNTS.values())),
        (given[::-1], list(COUNTS.values())[::-1]),
        (iter(given), COUNTS),
        ((Update(n, t, num_examples=COUNTS[n]) for n, t in CLIENTS.items()), None),
        (tuple(given), np.array(list(COUNTS.values()))),
    ):
        found = alloykit.aggregate(SERVER, updates, num_examples=counts)
        assert same_bits(found.model, wanted.model)
        assert [c.num_examples for c in found.record.counted] == list(COUNTS.values())
    nameless = alloykit.aggregate(
        SERVER, list(CLIENTS.values()), num_examples=list(COUNTS.values())
    )
    torch.testing.assert_close(nameless.model, wanted.model)
    assert {c.client for c in nameless.record.counted} == {f"client {i}" for i in range(1, 12)}


@pytest.mark.parametrize("server", [None, 0.0])
def test_the_result_has_the_form_of_the_models(server):
    def origin(make: Any) -> Any:
        return None if server is None else make(server)

    found = alloykit.aggregate(origin(linear), [linear(1.0), linear(3.0)]).model
    assert isinstance(found, nn.Linear)
    assert found.weight.tolist() == [[2.0, 2.0]]
    arrays = alloykit.aggregate(
        origin(lambda x: [np.full(2, x, np.float32)]), [[np.full(2, x, np.float32)] for x in (1, 3)]
    ).model
    assert isinstance(arrays[0], np.ndarray)
    assert arrays[0].tolist() == [2.0, 2.0]
    named = {"net.w": np.ones(2, np.float32)}
    mapping = alloykit.aggregate(origin(lambda x: named), [named, named]).model
    assert isinstance(mapping["net.w"], np.ndarray)


def test_the_form_is_that_of_a_client_that_counts():
    found = alloykit.aggregate(None, [linear(9.0, 3), linear(1.0), linear(3.0)])
    assert found.model.weight.tolist() == [[2.0, 2.0]]
    assert [left.client for left in found.record.left_out] == ["client 1"]
    found = alloykit.aggregate(None, iter([None, linear(1.0), linear(3.0)]))
    assert isinstance(found.model, nn.Linear)


def test_wrapped_names_come_back_wrapped():
    wrapped = {"module.w": torch.ones(1)}
    assert alloykit.aggregate(None, [wrapped, w(3.0)]).model["module.w"].tolist() == [2.0]
    assert alloykit.aggregate(w(0.0), [wrapped, w(3.0)]).model["w"].tolist() == [2.0]


def test_an_iterator_may_train_on_in_the_same_memory():
    def trained():
        net = linear(0.0)
        for value in (1.0, 3.0):
            with torch.no_grad():
                net.weight.fill_(value)
            yield net

    for checks in (None, {"norm_ratio": None, "examples_ratio": None}):
        found = alloykit.aggregate(linear(0.0), trained(), checks=checks)
        assert found.model.weight.tolist() == [[2.0, 2.0]]
        assert [c.client for c in found.record.counted] == ["client 1", "client 2"]


def test_the_state_goes_into_the_next_round():
    first = alloykit.aggregate(
        w(0.0), [w(1.0), w(3.0)], "fedavgm", parameters={"server_momentum": 0.5}
    )
    assert first.model["w"].tolist() == [2.0]
    second = alloykit.aggregate(
        first.model,
        [w(3.0), w(5.0)],
        "fedavgm",
        parameters={"server_momentum": 0.5},
        state=first.state,
    )
    # 2 + (2 + 0.5 · 2)
    assert second.model["w"].tolist() == [5.0]
    assert second.record.round == 2


def test_methods_are_aggregators_or_merges_or_made():
    sent = [w(1.0), w(2.0), w(9.0)]
    assert alloykit.aggregate(None, sent, "median").model["w"].tolist() == [2.0]
    made = as_aggregator("trimmed_mean", {"trim": 0.34})
    assert alloykit.aggregate(None, sent, made).model["w"].tolist() == [2.0]
    found = alloykit.aggregate(None, sent, "trimmed_mean", parameters={"trim": 0.34})
    assert found.model["w"].tolist() == [2.0]


def test_checks_are_limits_or_a_mapping_of_them():
    for checks in ({"max_norm": 5.0}, Checks(max_norm=5.0)):
        found = alloykit.aggregate(w(0.0), [w(1.0), w(9.0)], checks=checks)
        assert found.model["w"].tolist() == [1.0]
        assert found.record.left_out[0].reason == "its change has the norm 9, over the limit 5"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"updates": []}, MissingInput, "none were given"),
        ({"updates": "a.safetensors"}, MissingInput, "one was given: the path a.safetensors"),
        ({"updates": w(1.0)}, MissingInput, "One state dict was given"),
        ({"updates": linear(1.0)}, MissingInput, "one was given: Linear"),
        ({"method": "krumm"}, UnknownName, "no aggregator 'krumm'. Did you mean 'krum'"),
        ({"method": "fedadam", "server": None}, MissingInput, "Give server=, or a base"),
        ({"method": "krum"}, InvalidParameter, "needs at least 5 clients (2 · 1 + 3), and 2 count"),
        ({"num_examples": [1, 2, 3]}, InvalidParameter, "num_examples has 3 numbers for 2 updates"),
        ({"num_examples": {"x": 3}}, InvalidParameter, "names x; the clients are client 1, client 2"),
        ({"num_examples": [1], "updates": iter([w(1.0)])}, InvalidParameter, "one by one say themselves"),
        ({"checks": {"max_nrom": 1}}, InvalidParameter, "Did you mean 'max_norm'"),
        ({"keep": ["bn.*"]}, InvalidParameter, "match none of the model's 1 tensor"),
        ({"parameters": {"momentum": 1}}, InvalidParameter, "momentum"),
        ({"output": "new.pt"}, InvalidParameter, ".safetensors"),
        ({"server": {"w": "text"}}, CheckpointError, "it is a str, not a tensor"),
        ({"server": "gone.safetensors"}, CheckpointError, "no file gone.safetensors"),
        ({"checks": {"on_bad": "error"}, "updates": [w(1.0), None]}, DataError, "the update of client 2"),
        ({"server": None, "updates": [w(float("nan"))]}, MissingInput, "client 1: w holds 1 NaN"),
    ],
)  # fmt: skip
def test_mistakes_are_said(arguments, error, words):
    given = {"server": w(0.0), "updates": [w(1.0), w(3.0)], **arguments}
    with pytest.raises(error) as caught:
        alloykit.aggregate(**given)
    assert words in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server and three clients as files, in the current folder."""
    save_file(SERVER, tmp_path / "server.safetensors")
    for name, each in zip("abc", CLIENTS.values(), strict=False):
        save_file(each, tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = ["a.safetensors", "b.safetensors", "c.safetensors"]


def read(path: str | Path) -> dict[str, torch.Tensor]:
    checkpoint = alloykit.open_checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.specs()}


@pytest.mark.parametrize("method", ["fedavg", "fedadam", "krum", "median", "norm_clipping", "ties"])
def test_a_file_holds_what_would_be_returned(folder, method):
    parameters = {"krum": {"num_malicious": 0}, "norm_clipping": {"max_norm": 0.05}}.get(method)
    given = {"method": method, "parameters": parameters, "num_examples": [5, 1, 2]}
    found = alloykit.aggregate("server.safetensors", FILES, **given, output="new.safetensors")
    wanted = alloykit.aggregate("server.safetensors", FILES, **given)
    assert found.model == Path("new.safetensors")
    written = read(found.model)
    assert same_bits({n: written[n] for n in SERVER}, {n: wanted.model[n] for n in SERVER})
    assert [c.client for c in found.record.counted] == ["a", "b", "c"]


def test_only_the_clients_that_count_are_in_its_provenance(folder):
    bad = {**load_file("b.safetensors"), "layer.bias": torch.full((8,), float("nan"))}
    save_file(bad, "b.safetensors")
    sent = [*FILES, Update("a", "c.safetensors")]
    alloykit.aggregate(
        "server.safetensors", sent, num_examples=[3, 1, 1, 9], output="new.safetensors"
    )
    metadata = alloykit.open_checkpoint("new.safetensors").metadata
    inputs = json.loads(metadata["inputs"]) if "inputs" in metadata else metadata
    text = json.dumps(inputs) + json.dumps(dict(metadata))
    assert json.loads(metadata["method"]) == "fedavg"
    assert json.loads(metadata["weights"]) == {"a": 0.75, "c": 0.25}
    from alloykit.api.planning import DIGESTS

    assert DIGESTS["fingerprint"]("a.safetensors") in text
    assert DIGESTS["fingerprint"]("server.safetensors") in text
    assert DIGESTS["fingerprint"]("b.safetensors") not in text


def test_one_by_one_into_a_file_names_what_came(folder):
    def trained():
        net = linear(0.0)
        for value in (1.0, 3.0):
            with torch.no_grad():
                net.weight.fill_(value)
            yield Update(f"after {value:g}", net)

    alloykit.aggregate(linear(0.0), trained(), output="new.safetensors")
    assert read("new.safetensors")["weight"].tolist() == [[2.0, 2.0]]
    inputs = json.loads(alloykit.open_checkpoint("new.safetensors").metadata["inputs"])
    assert len({json.dumps(each) for each in (inputs.values() if isinstance(inputs, dict) else inputs)}) == 3  # fmt: skip


def _too_few(folder: Path) -> dict[str, Any]:
    return {"method": "krum", "parameters": {"num_malicious": 3}}


def _all_bad(folder: Path) -> dict[str, Any]:
    return {"checks": {"max_norm": 1e-9}}


def _quorum(folder: Path) -> dict[str, Any]:
    return {"checks": {"min_clients": 4}}


def _overflow(folder: Path) -> dict[str, Any]:
    save_file({"w": torch.tensor([-6e4]).half()}, "server.safetensors")
    for name in FILES:
        save_file({"w": torch.tensor([6e4]).half()}, name)
    return {"method": "fedavgm", "parameters": {"server_learning_rate": 3.0}}


def _broken_server(folder: Path) -> dict[str, Any]:
    save_file({**SERVER, "scale": torch.tensor(float("nan"))}, "server.safetensors")
    return {}


@pytest.mark.parametrize(
    ("prepare", "error"),
    [(_too_few, InvalidParameter), (_all_bad, MissingInput), (_quorum, MissingInput),
     (_overflow, CheckpointError), (_broken_server, CheckpointError)],
)  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, True])
def test_on_errors_nothing_is_written(folder, prepare, error, overwrite):
    options = prepare(folder)
    if overwrite:
        Path("new.safetensors").write_bytes(b"precious")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(error):
        alloykit.aggregate("server.safetensors", FILES, output="new.safetensors", overwrite=overwrite, **options)  # fmt: skip
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_that_is_kept_is_not_written_and_all_reasons_are_said(folder):
    with pytest.raises(MissingInput) as caught:
        alloykit.aggregate("server.safetensors", FILES, checks={"max_norm": 1e-9}, output="new.safetensors")  # fmt: skip
    lines = str(caught.value).splitlines()
    assert lines[0] == "new.safetensors was not written: 0 updates of at least 1 can be used."
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["a", "b", "c"]


def test_an_output_is_replaced_only_where_that_is_asked_for(folder):
    Path("new.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputExists, match="overwrite"):
        alloykit.aggregate("server.safetensors", FILES, output="new.safetensors")
    assert Path("new.safetensors").read_bytes() == b"precious"
    alloykit.aggregate("server.safetensors", FILES, output="new.safetensors", overwrite=True)
    assert set(read("new.safetensors")) == set(SERVER)


@pytest.mark.parametrize("target", ["server.safetensors", "b.safetensors", "link.safetensors"])
@pytest.mark.parametrize("turn", [list, iter])
def test_an_output_is_never_an_input(folder, target, turn):
    os.link("c.safetensors", "link.safetensors")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputExists, match="is one of the inputs"):
        alloykit.aggregate("server.safetensors", turn(FILES), output=target, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_pickles_with_unknown_classes_take_trust(tmp_path):
    class Odd:
        pass

    globals()["Odd"] = Odd
    Odd.__qualname__ = "Odd"
    for name, value in (("a", 1.0), ("b", 3.0)):
        torch.save({"state_dict": w(value), "extra": Odd()}, tmp_path / f"{name}.pt")
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    refused = alloykit.aggregate(w(0.0), files)
    assert [left.client for left in refused.record.left_out] == ["a", "b"]
    assert refused.record.kept_server
    found = alloykit.aggregate(w(0.0), files, trust_pickle=True)
    assert found.model["w"].tolist() == [2.0]


def test_kept_tensors_stay_as_the_server_has_them(folder):
    found = alloykit.aggregate("server.safetensors", FILES, keep=["layer.*"], output="new.safetensors")  # fmt: skip
    written = read(found.model)
    assert torch.equal(written["layer.weight"], SERVER["layer.weight"])
    assert not torch.equal(written["scale"], SERVER["scale"])


def test_tied_tensors_stay_tied_in_the_file(tmp_path):
    embed = torch.randn(3)
    tied = {"embed": embed, "head": embed}
    found = alloykit.aggregate(tied, [tied, tied], output=tmp_path / "new.safetensors")
    specs = alloykit.open_checkpoint(found.model).specs()
    assert specs["embed"].place == specs["head"].place
