"""The example app as a SuperLink and two SuperNodes on the loopback address."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.fedavg import fedavg
from alloykit.federation.update import Update

CLIENTS, EPOCHS = 2, 1
SETTINGS = {"clients": CLIENTS, "local-epochs": EPOCHS, "quorum": 1, "fraction-evaluate": 0.0}

RECEIVED = "Received successfully"
"""What a SuperNode says when it has a message, before it starts the client's process."""


def test_two_machines_end_in_the_bits_of_our_own_simulation(machines, own_simulation):
    machines.superlink()
    for client in range(CLIENTS):
        machines.supernode(client, CLIENTS)
    run = machines.begin({**SETTINGS, "rounds": 2, "deadline": machines.patience})
    records = machines.finish(run)
    assert [len(record["counted"]) for record in records] == [CLIENTS] * 2

    found = load_file(machines.output)
    expected = own_simulation("fedavg", CLIENTS, 2, EPOCHS)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_a_machine_killed_in_a_round_does_not_end_the_run(machines, task):
    machines.superlink()
    machines.supernode(0, CLIENTS)
    lost = machines.supernode(1, CLIENTS)
    run = machines.begin({**SETTINGS, "rounds": 3, "deadline": 45.0, "node-wait": 1.0})
    machines.wait_until(
        lambda: run.poll() is not None or machines.log("supernode-1").count(RECEIVED) == 2,
        "the second message to the second machine",
    )
    machines.kill(lost)
    records = machines.finish(run)

    assert [each["client"] for each in records[0]["counted"]] == ["0", "1"]
    assert [each["client"] for each in records[1]["counted"]] == ["0"]
    (left,) = records[1]["left_out"]
    assert left["client"] == "1"
    assert "did not answer before the deadline" in left["reason"] or "it failed" in left["reason"]
    assert [each["client"] for each in records[2]["counted"]] == ["0"]

    found = load_file(machines.output)
    for name, tensor in trained_by_those_that_counted(task, records).items():
        assert torch.equal(found[name], tensor), name


def trained_by_those_that_counted(task, records):
    """The same rounds by hand, with the clients that the records name."""
    model = task.new_model()
    for number, record in enumerate(records, 1):
        server = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        updates = []
        for client in [int(each["client"]) for each in record["counted"]]:
            model.load_state_dict(server)
            rows = task.rows_of(client, CLIENTS)
            task.fit(model, rows, task.training(EPOCHS, 0, number, client))
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            updates.append(Update(str(client), state, num_examples=len(rows)))
        model.load_state_dict(aggregate_updates(server, updates, fedavg()).tensors)
    return model.state_dict()
