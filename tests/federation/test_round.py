"""One round on the server."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from alloykit.errors import CheckpointError, DataError, InvalidParameter, MissingInput
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.checks import Checks
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import ServerState
from alloykit.federation.dp_fixed_clipping import dp_fixed_clipping
from alloykit.federation.fedavgm import fedavgm
from alloykit.federation.round import Round
from alloykit.federation.update import Aggregated, RoundRecord, Update
from client_samples import EVERY, built, honest, model, same_bits, trained, update
from strategies import state_dicts

SERVER = model()
SENT = honest(SERVER)
ONE_BY_ONE = Checks(examples_ratio=None, norm_ratio=None)
orders = st.permutations(range(len(SENT)))


def closed(updates, aggregator="fedavg", server=SERVER, **options) -> Aggregated:
    made = built(aggregator) if isinstance(aggregator, str) else aggregator
    round_ = Round(server, made, **options)
    for each in updates:
        round_.add(each)
    return round_.close()


def test_a_round_by_hand():
    server = {"w": torch.tensor([1.0, 1.0]), "bn.num_batches_tracked": torch.tensor(5)}
    one = Update(
        "a",
        {"w": torch.tensor([2.0, 1.0]), "bn.num_batches_tracked": torch.tensor(9)},
        num_examples=30,
    )
    two = Update(
        "b",
        {"w": torch.tensor([6.0, 1.0]), "bn.num_batches_tracked": torch.tensor(7)},
        num_examples=10,
    )
    found = closed([two, one], server=server)
    assert found.tensors["w"].tolist() == [3.0, 1.0]
    assert found.tensors["bn.num_batches_tracked"] == 9
    record = found.record
    assert (record.round, record.method, record.kept_server) == (1, "fedavg", "")
    assert [dataclasses.astuple(each) for each in record.counted] == [
        ("a", 30, 0.75, 1.0), ("b", 10, 0.25, 5.0),
    ]  # fmt: skip
    assert found.state == ServerState(round=1)
    assert RoundRecord.of(record.to_json()) == record


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=5)
@given(order=orders, names=st.randoms(use_true_random=False))
def test_neither_order_of_arrival_nor_of_names_changes_a_bit(name, order, names):
    def turned(tensors):
        shuffled = list(tensors)
        names.shuffle(shuffled)
        return {key: tensors[key] for key in shuffled}

    sent = [dataclasses.replace(SENT[i], model=turned(SENT[i].model)) for i in order]
    found, wanted = closed(sent, name), closed(SENT, name)
    assert same_bits(found.tensors, wanted.tensors)
    assert found.record == wanted.record
    for slot, tensors in wanted.state.tensors.items():
        assert same_bits(found.state.tensors[slot], tensors)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("limit", [None, 0, 2000])
def test_where_updates_are_kept_does_not_change_a_bit(name, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    wanted = closed(SENT, name)
    found = closed(SENT, name, memory_limit=limit)
    assert same_bits(found.tensors, wanted.tensors)
    assert found.record == wanted.record


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "norm_clipping", "fednova", "scaffold"])
def test_one_by_one_is_all_at_once_to_rounding(name):
    found = closed(SENT, name, checks=ONE_BY_ONE)
    wanted = closed(SENT, name, checks=ONE_BY_ONE, memory_limit=None)
    for key, tensor in wanted.tensors.items():
        # Where a change is 0 but for rounding, FedAdam divides by it.
        bound = 1e-3 if name == "fedadam" else 1e-6
        near = {"rtol": 0.008, "atol": 0} if tensor.dtype == torch.bfloat16 else {"rtol": 0, "atol": bound}  # fmt: skip
        torch.testing.assert_close(found.tensors[key], tensor, **near)
    for one, other in zip(found.record.counted, wanted.record.counted, strict=True):
        assert one.coefficient == other.coefficient
        assert one.norm == pytest.approx(other.norm)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("scale", [3, 1000, 1e-9])
def test_only_the_ratio_of_examples_counts(name, scale):
    scaled = [dataclasses.replace(each, num_examples=each.num_examples * scale) for each in SENT]
    found, wanted = closed(scaled, name), closed(SENT, name)
    torch.testing.assert_close(found.tensors, wanted.tensors, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "geometric_median"])
def test_changes_are_as_good_as_models(name):
    # In dtypes in which models and changes are exact.
    server = {n: (t.double() if t.dtype.is_floating_point else t) for n, t in SERVER.items()}
    whole = [
        dataclasses.replace(e, model={n: (t.double() * 1024).round() / 1024 + server[n] if t.dtype.is_floating_point else t for n, t in e.model.items()})
        for e in SENT
    ]  # fmt: skip
    changes = [dataclasses.replace(e, model={n: t - server[n] for n, t in e.model.items()}, delta=True) for e in whole]  # fmt: skip
    wanted, found = closed(whole, name, server), closed(changes, name, server)
    torch.testing.assert_close(found.tensors, wanted.tensors, rtol=1e-12, atol=1e-12)
    assert [c.client for c in found.record.counted] == [c.client for c in wanted.record.counted]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=5)
@given(states=state_dicts(1))
def test_equal_clients_equal_to_the_server_leave_every_bit(name, states):
    (server,) = states
    sent = [update(f"c{i:02}", server, num_examples=i + 1) for i in range(11)]
    for checks in (Checks(), ONE_BY_ONE):
        found = closed(sent, name, server, checks=checks)
        assert_same(name, found.tensors, server)


def assert_same(name, found, wanted):
    if built(name).step is None or built(name).step.buffers is not None:
        assert same_bits(found, wanted)
    else:
        # A step of length 0 may take the sign off a zero, which is no other number.
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@given(states=state_dicts(1))
def test_nor_does_a_running_mean_change_them(states):
    (server,) = states
    sent = [update(f"c{i:02}", server, num_examples=i + 1) for i in range(5)]
    found = closed(sent, "fedavg", server, checks=Checks(values=False))
    torch.testing.assert_close(found.tensors, server, rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("checks", [Checks(), ONE_BY_ONE])
def test_frozen_tensors_stay_to_the_bit(name, checks):
    weight = torch.cat([SERVER["layer.weight"][1:], torch.full((1, 8), -0.0)])
    frozen = SERVER | {"layer.weight": weight}
    sent = [dataclasses.replace(e, model={**e.model, "layer.weight": weight.clone()}) for e in SENT]
    found = closed(sent, name, frozen, checks=checks)
    assert_same(name, {"w": found.tensors["layer.weight"]}, {"w": weight})


private = dp_fixed_clipping(clip_norm=math.inf, noise_multiplier=0.0)


def test_noise_of_zero_and_no_clipping_is_fedavg_bit_for_bit():
    server = {n: t for n, t in SERVER.items() if t.dtype != torch.float64}
    server |= {"big": torch.randn(70_000)}
    for count in (1, 2, 3, 7, 11):
        for examples in (1, 7, 10, 600):
            sent = [
                update(f"c{i}", trained(server, i), num_examples=examples) for i in range(count)
            ]
            for checks in (Checks(), ONE_BY_ONE):
                plain = closed(sent, "fedavg", server, checks=checks)
                found = closed(sent, private, server, checks=checks)
                assert same_bits(found.tensors, plain.tensors), (count, examples)


@given(count=st.integers(1, 11), examples=st.integers(1, 1000))
def test_in_float64_too_where_all_come_at_once(count, examples):
    server = {"w": torch.zeros(50, dtype=torch.float64)}
    sent = [update(f"c{i:02}", trained(server, i), num_examples=examples) for i in range(count)]
    plain = aggregate_updates(server, sent, built("fedavg"))
    assert same_bits(aggregate_updates(server, sent, private).tensors, plain.tensors)


def test_kept_tensors_are_the_servers_and_need_not_be_sent():
    without = [dataclasses.replace(e, model={n: t for n, t in e.model.items() if not n.startswith("bn.")}) for e in SENT]  # fmt: skip
    for sent in (SENT, without):
        for checks in (None, ONE_BY_ONE):
            found = closed(sent, keep=["bn.*", "scale"], checks=checks)
            kept = {n: t for n, t in found.tensors.items() if n.startswith("bn.") or n == "scale"}
            assert same_bits(kept, {n: SERVER[n] for n in kept})
            assert not torch.equal(found.tensors["layer.bias"], SERVER["layer.bias"])
    assert same_bits(closed(SENT, keep=["*"]).tensors, SERVER)
    assert same_bits(closed(SENT, keep="bn.*").tensors, closed(SENT, keep=["bn.*"]).tensors)


def test_globs_that_match_nothing_are_an_error():
    with pytest.raises(InvalidParameter, match="match none of the model's 8 tensors"):
        Round(SERVER, built("fedavg"), keep=["batch_norm.*"])


def test_tied_tensors_stay_tied():
    def tied(seed):
        embed = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        return {"embed": embed, "head": embed, "b": torch.ones(1)}

    sent = [Update(f"c{i}", tied(i)) for i in range(3)]
    for server in (tied(9), None):
        for options in ({}, {"memory_limit": 0}, {"memory_limit": None}):
            found = closed(sent, server=server, **options).tensors
            assert found["embed"] is found["head"]
    apart = Update("x", {**tied(5), "head": torch.zeros(4)})
    found = closed([*sent, apart], server=tied(9))
    assert found.record.left_out[0].reason == "head and embed differ, which the server has as one tensor"  # fmt: skip


def test_every_sort_of_tensor_in_one_model():
    embed = torch.randn(3, 5).t()
    mask = torch.tensor([0.0, -math.inf])
    server = {
        "bf16": torch.randn(3).bfloat16(), "fp16": torch.randn(3).half(), "f64": torch.randn(3).double(),
        "c64": torch.randn(3, dtype=torch.complex64), "scalar": torch.tensor(2.0), "none": torch.zeros(0, 4),
        "turned": embed, "mask": mask, "flag": torch.tensor(True), "bytes": torch.arange(4, dtype=torch.uint8),
        "wide": torch.tensor([3], dtype=torch.uint16), "bn.num_batches_tracked": torch.tensor(1),
    }  # fmt: skip
    sent = [
        Update(f"c{i}", {n: t + i if n == "bn.num_batches_tracked" or ((t.is_floating_point() or t.is_complex()) and n != "mask") else t for n, t in server.items()})
        for i in range(4)
    ]  # fmt: skip
    for checks in (Checks(), ONE_BY_ONE, Checks(values=False)):
        found = closed(sent, server=server, checks=checks).tensors
        assert [(t.dtype, t.shape) for t in found.values()] == [(t.dtype, t.shape) for t in server.values()]  # fmt: skip
        assert found["bn.num_batches_tracked"] == 4
        assert torch.equal(found["mask"], mask)
        for name in ("bf16", "fp16", "f64", "c64", "scalar", "turned"):
            near = {torch.bfloat16: 0.04, torch.float16: 0.005}.get(server[name].dtype, 1e-6)
            torch.testing.assert_close(found[name], server[name] + 1.5, rtol=0, atol=near)


def test_a_module_without_averaged_tensors():
    server = {"ids": torch.arange(3), "flags": torch.tensor([True])}
    sent = [update(f"c{i:02}", server) for i in range(11)]
    for name in EVERY:
        found = closed(sent, name, server)
        assert same_bits(found.tensors, server)
        assert len(found.record.counted) == 11


def test_results_beyond_fp16_are_an_error_that_names_the_tensor():
    server = {"w": torch.tensor([-6e4]).half()}
    sent = [update(f"c{i}", {"w": torch.tensor([6e4]).half()}) for i in range(3)]
    with pytest.raises(
        CheckpointError, match=r"The new w is outside the range of torch\.float16: 1 Inf"
    ):
        aggregate_updates(server, sent, fedavgm(server_learning_rate=3.0))


def test_results_beyond_float32_are_an_error_too():
    server = {"w": torch.tensor([-3e38])}
    sent = [update(f"c{i}", {"w": torch.tensor([3e38])}) for i in range(3)]
    with pytest.raises(
        CheckpointError, match=r"The new w is outside the range of torch\.float32: 1 Inf"
    ):
        closed(sent, server=server)


def test_any_precision_where_the_kind_is_asked_for():
    sent = [
        update("half", {"w": torch.tensor([1.0, 2.0]).half()}),
        update("wide", {"w": torch.tensor([3.0, 4.0]).double()}),
        update("beyond", {"w": torch.tensor([1e300, 0.0]).double()}),
    ]
    found = closed(sent, server={"w": torch.zeros(2)}, checks=Checks(dtypes="kind"))
    assert found.tensors["w"].tolist() == [2.0, 3.0]
    assert found.tensors["w"].dtype == torch.float32
    assert [(left.client, left.reason) for left in found.record.left_out] == [("beyond", "w holds 1 Inf")]  # fmt: skip


def test_big_endian_arrays_and_modules_are_models_too():
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.fill_(3.0)
        net.bias.fill_(1.0)
    arrays = {"weight": np.full((1, 2), 5.0, ">f4"), "bias": np.ones(1, ">f4")}
    arrays["bias"].flags.writeable = False
    found = closed([Update("net", net), Update("arrays", arrays)], server=None).tensors
    assert (found["weight"].tolist(), found["bias"].tolist()) == ([[4.0, 4.0]], [1.0])
    assert not any(t.requires_grad for t in found.values())
    listed = [Update(c, [np.full(2, x, np.float32)]) for c, x in (("a", 1), ("b", 3))]
    assert closed(listed, server=[np.zeros(2, np.float32)]).tensors["0"].tolist() == [2.0, 2.0]


def test_neither_server_nor_clients_are_changed():
    for name in EVERY:
        server, sent = model(), honest(model())
        found = closed(sent, name, server)
        for tensor in found.tensors.values():
            tensor.zero_()
        assert same_bits(server, SERVER)
        assert all(same_bits(e.model, f.model) for e, f in zip(sent, SENT, strict=True))


@pytest.mark.parametrize("checks", [Checks(), ONE_BY_ONE])
def test_a_client_may_train_on_in_the_same_memory(checks):
    net, round_ = nn.Linear(1, 1, bias=False), Round(None, built("fedavg"), checks=checks)
    served = Round({"weight": torch.zeros(1, 1)}, built("fedavg"), checks=checks)
    for value in (1.0, 2.0, 6.0):
        with torch.no_grad():
            net.weight.fill_(value)
        for each in (round_, served):
            assert each.add(Update(f"after {value}", net, num_examples=1)) == ""
    assert round_.close().tensors["weight"].item() == 3.0
    assert served.close().tensors["weight"].item() == 3.0


def test_clients_that_never_answered_are_in_the_record():
    round_ = Round(SERVER, built("fedavg"))
    round_.leave_out("gone", "it never answered")
    for each in SENT:
        round_.add(each)
    record = round_.close().record
    assert [(left.client, left.reason) for left in record.left_out] == [("gone", "it never answered")]  # fmt: skip
    strict = Round(SERVER, built("fedavg"), checks=Checks(on_bad="error"))
    with pytest.raises(DataError, match="the update of gone cannot be used: it never answered"):
        strict.leave_out("gone", "it never answered")


def test_who_was_left_out_may_send_again():
    round_ = Round({"w": torch.zeros(1)}, built("fedavg"))
    assert round_.add(Update("a", {"w": torch.ones(2)})) != ""
    assert round_.add(Update("a", {"w": torch.ones(1)})) == ""
    assert round_.add(Update("a", {"w": torch.ones(1)})) == "it sent a second update in this round"
    assert round_.close().tensors["w"].tolist() == [1.0]


def test_the_state_goes_on_where_the_model_is_kept():
    state = ServerState(4, {"a": 1.0}, {"first_moment": {"scale": torch.tensor(2.0)}})
    found = closed([], "fedadam", state=state)
    assert found.record.round == 5
    assert found.state.round == 5
    assert found.state.numbers == {"a": 1.0}
    assert found.state.tensors["first_moment"]["scale"] == 2.0


def test_without_a_server_nothing_usable_is_an_error_with_all_reasons():
    with pytest.raises(MissingInput) as caught:
        closed([Update("a", None), Update("b", {"w": torch.tensor([math.nan])})], server=None)
    assert "0 updates of at least 1" in str(caught.value)
    assert "a: A NoneType is not a checkpoint" in str(caught.value)
    assert "b: w holds 1 NaN" in str(caught.value)


def test_changes_without_a_server_do_not_count():
    sent = [Update("a", {"w": torch.ones(1)}, delta=True), Update("b", {"w": torch.ones(1) * 3})]
    found = closed(sent, server=None)
    assert found.tensors["w"].tolist() == [3.0]
    assert found.record.left_out[0].reason == "it holds a change of the server's model, which is not known"  # fmt: skip


@pytest.mark.parametrize("name", ["fedadam", "fedbuff", "norm_clipping", "scaffold", "qfedavg"])
def test_what_starts_from_the_server_says_so(name):
    with pytest.raises(
        MissingInput, match=f"^{name} starts from the server's model, and it was not given"
    ):
        Round(None, built(name))
    with pytest.raises(MissingInput, match=r"'bn.\*' would be kept as the server has them"):
        Round(None, built("fedavg"), keep=["bn.*"])


def test_the_state_of_another_model_is_refused():
    state = closed(SENT, "fedadam").state
    with pytest.raises(CheckpointError, match="is of another model"):
        Round({"layer.weight": torch.ones(9)}, built("fedadam"), state=state)


def damaged(folder: Path) -> Path:
    """A file that can be opened; that its tensor is damaged shows in reading it."""
    path = folder / "bad.npz"
    np.savez_compressed(path, w=np.random.default_rng(0).normal(size=4000).astype(np.float32))
    raw = bytearray(path.read_bytes())
    raw[3000] ^= 255
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checks": ONE_BY_ONE},
        {"checks": Checks(values=False)},
        {"checks": Checks(values=False, norm_ratio=None, examples_ratio=None)},
    ],
)
@pytest.mark.parametrize("name", ["fedavg", "krum", "median"])
@pytest.mark.parametrize("server", [None, {"w": torch.zeros(4000)}], ids=["alone", "server"])
def test_damage_that_shows_late_costs_one_client(options, name, server, tmp_path):
    sent = [update(f"c{i}", {"w": torch.full((4000,), 1.0 + i)}) for i in range(7)]
    wanted = closed(sent, name, server, **options)
    found = closed([update("bad", damaged(tmp_path)), *sent], name, server, **options)
    (left,) = found.record.left_out
    assert left.client == "bad"
    assert "w.npy cannot be unpacked" in left.reason
    assert same_bits(found.tensors, wanted.tensors)


@pytest.mark.parametrize("name", ["fedavg", "median"])
def test_a_file_that_vanishes_costs_one_client(name, tmp_path):
    sent = [update(f"c{i}", {"w": torch.full((40,), 1.0 + i)}) for i in range(3)]
    save_file({"w": torch.ones(40)}, tmp_path / "gone.safetensors")
    round_ = Round({"w": torch.zeros(40)}, built(name))
    for each in [update("gone", tmp_path / "gone.safetensors"), *sent]:
        assert round_.add(each) == ""
    (tmp_path / "gone.safetensors").write_bytes(b"")
    found = round_.close()
    assert [left.client for left in found.record.left_out] == ["gone"]
    assert same_bits(found.tensors, closed(sent, name, {"w": torch.zeros(40)}).tensors)


def test_writing_gets_the_same_model_tensor_by_tensor():
    for name in EVERY:
        got: dict[str, torch.Tensor] = {}
        round_ = Round(SERVER, built(name))
        for each in SENT:
            round_.add(each)

        def write(specs, tensors, record, got=got):
            assert list(specs) == list(SERVER)
            assert len(record.counted) == len(SENT)
            got.update(tensors)

        found, wanted = round_.close(write), closed(SENT, name)
        assert found.tensors == {}
        torch.testing.assert_close(got, wanted.tensors, rtol=1e-6, atol=1e-7)
        assert found.state.tensors.keys() == wanted.state.tensors.keys()


def test_threads_are_given_back():
    before = torch.get_num_threads()
    closed(SENT)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("name", "needed"), [("krum", 9), ("multi_krum", 9), ("bulyan", 15)])
def test_clients_found_out_are_no_longer_among_the_malicious(name, needed):
    server = {"w": torch.zeros(3)}
    spread = torch.linspace(-0.1, 0.1, needed)
    honest = [update(f"c{i:02}", {"w": torch.ones(3) + x}) for i, x in enumerate(spread[:-3])]
    broken = [update(f"z{i}", {"w": torch.full((3,), torch.nan)}) for i in range(3)]
    rule = as_aggregator(name, {"num_malicious": 3})
    twice = [honest[0]] * 3  # a second update of one client finds nobody
    found = aggregate_updates(server, [*honest, *broken], rule)
    assert len(found.record.counted) == needed - 3
    assert (found.tensors["w"] - 1.0).abs().max() < 0.1
    # One that never answered may be honest, and one that answered may be malicious.
    round_ = Round(server, rule)
    for each in [*honest, *twice]:
        round_.add(each)
    round_.leave_out("late", "it never answered")
    with pytest.raises(InvalidParameter, match="num_malicious=3"):
        round_.close()
