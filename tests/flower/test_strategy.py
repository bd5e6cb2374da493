"""A round of the strategy, with a connection that answers as the test says."""

from __future__ import annotations

import math
import time
import uuid
import weakref

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from alloykit.errors import DataError, InvalidParameter, UnknownName
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.checks import Checks
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.update import Update
from alloykit.plugins.flower import AlloyStrategy, Keys, from_arrays, to_arrays, to_reply
from alloykit.plugins.flower_replies import averaged_metrics
from alloykit.plugins.flower_waiting import available

COUNT = "bn.num_batches_tracked"
SERVER = {"w": torch.zeros(3, 2), "b": torch.ones(2), COUNT: torch.tensor(4)}
LOST = object()


def model(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3, 2), value), "b": torch.full((2,), -value), COUNT: torch.tensor(5)}


def update(client: int, **changes) -> Update:
    return Update(str(client), model(client + 0.1), num_examples=10 * (client + 1), **changes)


def honest(client: int):
    """What a client that does its part answers."""
    return lambda message: Message(to_reply(update(client), {"loss": client}), reply_to=message)


def saying(client: int, content: dict):
    """A client whose reply differs from an honest one in these records."""
    return lambda message: Message(
        RecordDict({**to_reply(update(client)), **content}), reply_to=message
    )


class FakeGrid:
    """Nodes that answer in the order of ``answers``, or not at all.

    Args:
        answers: Node -> message -> reply; an exception is raised when the reply is fetched.
        connect: How often the nodes are counted before the last one is connected.
    """

    def __init__(self, answers, connect: int = 0) -> None:
        self.answers, self.connect = answers, connect
        self.replies: dict[str, object] = {}
        self.sent: list[Message] = []
        self.alive: list[weakref.ref] = []
        self.most_alive = 0

    def get_node_ids(self):
        self.connect -= 1
        return list(self.answers)[: -1 if self.connect >= 0 else None]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = id = uuid.uuid4().hex
            self.sent.append(message)
            self.replies[id] = (self.answers[message.metadata.dst_node_id], message)
            ids.append(id)
        return ids

    def pull_messages(self, ids):
        (id,) = ids
        answer, message = self.replies[id]
        if answer is LOST:
            return []
        del self.replies[id]
        reply = answer(message)
        self.alive = [each for each in self.alive if each() is not None] + [weakref.ref(reply)]
        self.most_alive = max(self.most_alive, len(self.alive))
        return [reply]


def strategy(*args, **options) -> AlloyStrategy:
    return AlloyStrategy(*args, **{"node_wait": 0.0, "fraction_evaluate": 0.0, **options})


def one_round(given: AlloyStrategy, answers, server=SERVER, rounds: int = 1, timeout=0.3):
    """Run it with nodes 100, 101, ...; the model and the last record."""
    grid = FakeGrid({100 + i: answer for i, answer in enumerate(answers)})
    result = given.start(grid, to_arrays(server), num_rounds=rounds, timeout=timeout)
    return from_arrays(result.arrays), given.records[-1], result, grid


def expected(clients, method="fedavg", **options):
    found = aggregate_updates(
        SERVER, [update(client) for client in clients], as_aggregator(method, options),
        memory_limit=1 << 20,
    )  # fmt: skip
    return found.tensors


def assert_same(one, other) -> None:
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fedavg", {}), ("median", {}), ("trimmed_mean", {"trim": 0.3}), ("fedadam", {}),
        ("krum", {"num_malicious": 1}),
    ],
)  # fmt: skip
def test_a_round_is_what_aggregating_the_updates_is(method, options):
    answers = [honest(i) for i in range(5)]
    found, record, _, _ = one_round(strategy(method, options), answers)
    assert_same(found, expected(range(5), method, **options))
    assert [each.client for each in record.counted] == ["0", "1", "2", "3", "4"]
    assert record.left_out == ()


def test_fedavg_is_the_mean_by_examples():
    found, _, result, _ = one_round(strategy(), [honest(0), honest(1)])
    torch.testing.assert_close(found["w"], torch.full((3, 2), (10 * 0.1 + 20 * 1.1) / 30))
    assert found[COUNT] == 5
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(20 / 30)


@pytest.mark.parametrize("ratio", [None, 1000.0], ids=["one by one", "kept"])
def test_the_order_of_arrival_does_not_show(ratio):
    checks = Checks(examples_ratio=ratio, norm_ratio=ratio)
    found = [
        one_round(strategy(checks=checks), [honest(i) for i in order])[0]
        for order in ([0, 1, 2, 3], [3, 1, 0, 2])
    ]
    assert_same(*found)


def test_replies_are_dropped_as_soon_as_they_are_used():
    checks = Checks(examples_ratio=None, norm_ratio=None)
    _, _, _, grid = one_round(strategy(checks=checks), [honest(i) for i in range(20)])
    assert grid.most_alive <= 2


NPY = Array(torch.zeros(3, 2).numpy()).data
HUGE = NPY.replace(b"(3, 2)", b"(3, 2000000000000)")[:128]


def arrays(**changes) -> dict:
    return {"arrays": to_arrays({**model(0.1), **changes})}


def metrics(**numbers) -> dict:
    return {"metrics": MetricRecord({"num-examples": 10, **numbers})}


BAD = {
    "NaN": (arrays(b=torch.tensor([1.0, math.nan])), "b holds 1 NaN"),
    "infinity": (arrays(b=torch.tensor([1.0, math.inf])), "b holds 1 Inf"),
    "shape": (arrays(w=torch.zeros(3, 3)), "w is [3, 3], the server's [3, 2]"),
    "broadcast": (arrays(b=torch.zeros(1)), "b is [1], the server's [2]"),
    "dtype": (arrays(b=torch.zeros(2, dtype=torch.float16)), "b is float16"),
    "complex": (arrays(b=torch.zeros(2, dtype=torch.complex64)), "b is complex64"),
    "missing": (
        {"arrays": to_arrays({"w": torch.zeros(3, 2)})},
        "2 tensors (b, bn.num_batches_tracked) missing",
    ),
    "extra": (arrays(other=torch.zeros(1)), "1 tensor (other) that the server does not have"),
    "empty": ({"arrays": ArrayRecord()}, "holds no tensors"),
    "two models": ({"more": to_arrays(model(0.1))}, "2 models"),
    "two metrics": ({"more": MetricRecord({"loss": 1.0})}, "2 records of metrics"),
    "no examples": ({"metrics": MetricRecord({"loss": 1.0})}, "gives no number of examples"),
    "zero examples": (metrics(**{"num-examples": 0}), "says that it has 0 examples"),
    "negative examples": (metrics(**{"num-examples": -50}), "says that it has -50 examples"),
    "NaN examples": (metrics(**{"num-examples": math.nan}), "says that it has nan examples"),
    "a list of examples": (metrics(**{"num-examples": [1, 2]}), "says that it has [1, 2]"),
    "absurd examples": (metrics(**{"num-examples": 10**15}), "1e+15 examples"),
    "an old round": (metrics(**{"server-round": 7}), "of round 7"),
    "truncated": (
        {"arrays": ArrayRecord({"w": Array("float32", (3, 2), "numpy.ndarray", NPY[:-4])})},
        "does not fill its 20 bytes",
    ),
    "too large to decode": (
        {"arrays": ArrayRecord({"w": Array("float32", (3, 2), "numpy.ndarray", HUGE)})},
        "w: ",
    ),
    "too large to fit": (arrays(w=torch.zeros(300, 200)), "and the server's tensor takes 24"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_left_out_with_the_reason(case):
    content, reason = BAD[case]
    answers = [honest(1), saying(0, content), honest(2), honest(3)]
    found, record, _, _ = one_round(strategy(), answers)
    assert_same(found, expected([1, 2, 3]))
    assert [each.client for each in record.counted] == ["1", "2", "3"]
    (left,) = record.left_out
    assert left.client in ("0", "node 101")
    assert reason in left.reason
    assert left.reason.isprintable()


def test_a_client_that_fails_is_left_out_with_what_it_says():
    from flwr.app import Error

    def fails(message):
        return Message(Error(20, "disk\n  full\x1b[2J"), reply_to=message)

    found, record, _, _ = one_round(strategy(), [honest(0), fails])
    assert_same(found, expected([0]))
    assert record.left_out[0].reason == "it failed: disk full\\x1b[2J (code 20)"
    later = strategy()
    rounds = iter([honest(1), fails])
    one_round(later, [honest(0), lambda message: next(rounds)(message)], rounds=2)
    assert later.records[1].left_out[0].client == "1", "its name is known from round 1"


def test_a_reply_that_flower_cannot_read_concerns_its_client_alone():
    def broken(message):
        raise ValueError("Unexpected set of children")

    found, record, _, _ = one_round(strategy(), [broken, honest(0), honest(1)])
    assert_same(found, expected([0, 1]))
    assert record.left_out[0].client == "node 100"
    assert "cannot be read: ValueError: Unexpected set" in record.left_out[0].reason


def test_the_deadline_ends_the_waiting():
    began = time.monotonic()
    answers = [honest(0), LOST, honest(2)]
    found, record, _, _ = one_round(strategy(deadline=0.2), answers, timeout=3600)
    assert 0.2 <= time.monotonic() - began < 30
    assert_same(found, expected([0, 2]))
    assert [(each.client, each.reason) for each in record.left_out] == [
        ("node 101", "it did not answer before the deadline")
    ]


def test_enough_updates_end_the_waiting():
    began = time.monotonic()
    given = strategy(deadline=30, enough=2)
    found, record, _, _ = one_round(given, [honest(0), honest(1), LOST])
    assert time.monotonic() - began < 30
    assert_same(found, expected([0, 1]))
    assert record.left_out[0].reason == "it had not answered when enough others had"


def test_fewer_than_the_quorum_leave_the_model_as_it_is():
    found, record, result, _ = one_round(strategy(quorum=3), [honest(0), honest(1), LOST])
    assert_same(found, SERVER)
    assert record.kept_server == "2 updates of at least 3 can be used"
    assert result.train_metrics_clientapp == {}
    assert record.counted == ()


def test_nodes_are_waited_for_but_not_for_ever():
    given = strategy(min_available_nodes=3, node_wait=60.0)
    grid = FakeGrid({100 + i: honest(i) for i in range(3)}, connect=2)
    given.start(grid, to_arrays(SERVER), num_rounds=1, timeout=10)
    assert len(given.records[0].counted) == 3

    began = time.monotonic()
    given = strategy(min_available_nodes=9, deadline=0.2)
    _, record, _, _ = one_round(given, [honest(0), honest(1)])
    assert 0.2 <= time.monotonic() - began < 30
    assert len(record.counted) == 2

    _, record, _, grid = one_round(strategy(quorum=3), [honest(0), honest(1)])
    assert grid.sent == []
    assert record.kept_server


def test_nodes_that_did_not_come_are_not_waited_for_again(monkeypatch):
    waits = []

    def counted(grid, wanted, seconds):
        waits.append((wanted, seconds))
        return available(grid, wanted, 0.0)

    monkeypatch.setattr("alloykit.plugins.flower.available", counted)
    given = strategy(min_available_nodes=3, node_wait=5.0, deadline=20.0)
    grid = FakeGrid({100 + i: honest(i) for i in range(2)})
    given.start(grid, to_arrays(SERVER), num_rounds=2)
    grid.answers[102] = honest(2)
    given.start(grid, to_arrays(SERVER), num_rounds=1)
    grid.answers.popitem()
    given.start(grid, to_arrays(SERVER), num_rounds=2)
    assert waits == [(3, 20.0), (2, 5.0), (2, 5.0), (3, 5.0), (2, 5.0)]


def test_only_clients_that_were_asked_count_and_each_once():
    given = strategy()
    grid = FakeGrid({100: honest(0), 101: honest(1)})
    messages = given.configure_train(1, to_arrays(SERVER), ConfigRecord(), grid)
    one, other = (grid.answers[m.metadata.dst_node_id](m) for m in messages)
    foreign = Message(RecordDict(), dst_node_id=999, message_type="train")
    foreign = honest(9)(foreign)
    given.aggregate_train(1, [one, one, other, foreign])
    record = given.records[0]
    assert [each.client for each in record.counted] == ["0", "1"]
    assert [each.reason for each in record.left_out] == [
        "it sent a second reply in this round", "it was not asked",
    ]  # fmt: skip


def test_nobody_takes_the_name_of_another():
    _, record, _, _ = one_round(strategy(), [honest(0), honest(1), honest(0)])
    assert len(record.counted) == 2
    assert record.left_out[0].reason == "node 102 calls itself 0, as node 100 does"


def test_clients_are_called_by_number_text_or_node():
    text = {"client": ConfigRecord({"client": "Ålesund"})}
    number = {"client": ConfigRecord(), **metrics(client=7)}
    nobody = {"client": ConfigRecord(), **metrics(client=0.5)}
    answers = [saying(0, text), saying(0, number), saying(0, nobody)]
    _, record, _, _ = one_round(strategy(), answers)
    assert [each.client for each in record.counted] == ["7", "node 102", "Ålesund"]


def test_messages_that_cannot_be_sent_are_noted():
    grid = FakeGrid({100: honest(0), 101: honest(1)})
    push = grid.push_messages
    grid.push_messages = lambda messages: [None, *push(messages)[1:]]
    given = strategy()
    given.start(grid, to_arrays(SERVER), num_rounds=1)
    assert given.records[0].left_out[0].reason == "the message could not be sent"
    assert [each.client for each in given.records[0].counted] == ["1"]


def test_a_bad_update_ends_the_run_where_that_is_asked_for():
    given = strategy(checks=Checks(on_bad="error"))
    with pytest.raises(DataError, match="b is \\[1\\]"):
        one_round(given, [honest(1), saying(0, BAD["broadcast"][0])])


def test_too_few_clients_for_an_aggregator_keep_the_model():
    given = strategy("krum", {"num_malicious": 1})
    found, record, _, _ = one_round(given, [honest(0), honest(1)])
    assert_same(found, SERVER)
    assert "krum" in record.kept_server.lower()
    assert given.state.round == 1


def test_low_precision_and_tied_tensors_make_the_way_there_and_back():
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    server = {"embed": weight, "head": weight, "norm": torch.ones(4, dtype=torch.float16)}

    def trains(step: float):
        def answer(message):
            found = from_arrays(message.content["arrays"])
            assert found["embed"] is found["head"]
            found["embed"] += step
            return Message(to_reply(Update(str(step), found, num_examples=1)), reply_to=message)

        return answer

    given = strategy()
    found, _, result, _ = one_round(given, [trains(1.0), trains(2.0)], server, rounds=2)
    assert found["embed"] is found["head"]
    assert found["embed"].dtype == torch.bfloat16
    assert torch.equal(found["embed"], torch.full((4, 4), 4.0, dtype=torch.bfloat16))
    assert result.arrays["head"].data == b"embed"


def test_state_goes_on_from_round_to_round_and_from_run_to_run():
    def moves(message):
        found = from_arrays(message.content["arrays"])
        number = message.content["config"]["server-round"]
        return Message(
            to_reply(Update("0", {n: t + number for n, t in found.items()}, num_examples=1)),
            reply_to=message,
        )

    options = {"server_momentum": 0.9}
    whole = strategy("fedavgm", options)
    expected_model, *_ = one_round(whole, [moves, LOST], rounds=4)
    first = strategy("fedavgm", options)
    halfway, *_ = one_round(first, [moves, LOST], rounds=2)
    second = strategy("fedavgm", options, state=first.state)
    found, *_ = one_round(second, [moves, LOST], halfway, rounds=2)
    assert_same(found, expected_model)
    assert [record.round for record in second.records] == [3, 4]


def test_control_variates_travel_both_ways():
    seen = []

    def answer(message):
        sent = message.content.array_records.get("control")
        seen.append(None if sent is None else from_arrays(sent))
        given = update(0, control={"w": torch.full((3, 2), 0.5)})
        return Message(to_reply(given), reply_to=message)

    given = strategy("scaffold", {"num_clients": 2}, quorum=1)
    _, record, _, _ = one_round(given, [answer], rounds=2)
    assert len(record.counted) == 1
    assert seen[0] is None
    assert torch.equal(seen[1]["w"], torch.full((3, 2), 0.25))


def test_kept_tensors_stay_the_servers():
    found, _, _, _ = one_round(strategy(keep="b"), [honest(0), honest(1)])
    assert torch.equal(found["b"], SERVER["b"])
    assert not torch.equal(found["w"], SERVER["w"])


def test_names_that_all_begin_like_a_wrappers_stay_as_they_are():
    server = {"module.w": torch.zeros(2)}
    answer = lambda message: Message(  # noqa: E731
        to_reply(Update("0", {"module.w": torch.ones(2)}, num_examples=1)), reply_to=message
    )
    found, _, _, _ = one_round(strategy(), [answer], server)
    assert list(found) == ["module.w"]


def test_results_are_averaged_over_those_that_count():
    answers = [honest(1), saying(0, {**BAD["NaN"][0], **metrics(loss=1e9)}), honest(2)]
    _, _, result, _ = one_round(strategy(), answers)
    assert dict(result.train_metrics_clientapp[1]) == {"loss": pytest.approx((20 + 2 * 30) / 50)}


def test_odd_results_spoil_nothing():
    rows = [(1.0, {"a": [1.0, 2.0], "b": math.nan}), (1.0, {"a": [3.0], "b": 4}), (2.0, {"a": 7.0})]
    assert averaged_metrics(rows) == {"a": [1.0, 2.0], "b": 4.0}
    assert averaged_metrics([(1.0, {"a": math.inf})]) == {}
    assert averaged_metrics([(1.0, {"a": 1e308}), (1.0, {"a": 1e308})]) == {"a": 1e308}


def test_evaluation_is_averaged_by_examples():
    def scored(client, count, score):
        def answer(message):
            found = MetricRecord({"num-examples": count, "client": client, "accuracy": score})
            return Message(RecordDict({"metrics": found}), reply_to=message)

        return lambda m: answer(m) if m.metadata.message_type == "evaluate" else honest(client)(m)

    answers = [scored(0, 10, 0.5), scored(1, 30, 0.9), scored(2, 0, 0.0), scored(3, 10, math.nan)]
    answers.append(scored(4, 10**15, 1.0))
    given = strategy(fraction_evaluate=1.0)
    _, _, result, _ = one_round(given, answers)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(32 / 40)


def test_the_server_evaluates_too_and_a_model_is_always_returned():
    grid = FakeGrid({})
    given = strategy()
    result = given.start(
        grid, to_arrays(SERVER), num_rounds=2, timeout=0.1,
        evaluate_fn=lambda n, _: MetricRecord({"round": n}),
    )  # fmt: skip
    assert [row["round"] for row in result.evaluate_metrics_serverapp.values()] == [0, 1, 2]
    assert_same(from_arrays(result.arrays), SERVER)
    assert [record.kept_server for record in given.records] == [
        "0 updates of at least 1 can be used"
    ] * 2


def test_a_part_of_the_nodes_is_chosen_by_seed():
    def chosen(seed):
        given = strategy(fraction_train=0.5, min_train_nodes=1, min_available_nodes=1, seed=seed)
        grid = FakeGrid({100 + i: honest(i) for i in range(10)})
        return [
            [m.metadata.dst_node_id for m in given.configure_train(1, to_arrays(SERVER), ConfigRecord(), grid)]
            for _ in range(2)
        ]  # fmt: skip

    one, again = chosen(0)
    assert one == again
    assert len(one) == 5
    assert chosen(0) != chosen(1)


def test_other_names_of_numbers():
    keys = Keys(num_examples="rows", client="site", arrays="model")
    answers = [lambda m, i=i: Message(to_reply(update(i), keys=keys), reply_to=m) for i in range(2)]
    found, _, _, grid = one_round(strategy(keys=keys), answers)
    assert_same(found, expected([0, 1]))
    assert "model" in grid.sent[0].content


def test_without_a_configured_round_the_clients_are_combined_alone():
    grid = FakeGrid({100: honest(0)})
    message = Message(RecordDict(), dst_node_id=100, message_type="train")
    arrays_, _ = strategy().aggregate_train(1, [grid.answers[100](message)])
    assert_same(from_arrays(arrays_), model(0.1))


def test_settings_that_cannot_be_are_all_listed():
    with pytest.raises(InvalidParameter) as caught:
        AlloyStrategy(deadline=0, quorum=0, fraction_train=1.5, node_wait=-1, min_train_nodes=1.5)
    for name in ("deadline", "quorum", "fraction_train", "node_wait", "min_train_nodes"):
        assert f"'{name}'" in str(caught.value)
    with pytest.raises(InvalidParameter, match="'enough' must be at least the quorum, 3"):
        AlloyStrategy(quorum=3, enough=2)
    with pytest.raises(UnknownName, match="Did you mean 'fedavg'"):
        AlloyStrategy("fedavgg")
