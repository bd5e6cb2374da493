"""The example app in Flower's simulation ends in the same bits as alloykit's own simulation."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

CLIENTS, ROUNDS, EPOCHS = 4, 3, 2  # Epochs as the app has them.


def test_simulation_ends_in_the_bits_of_our_own(machines, own_simulation):
    aggregator = "fedadam"  # It keeps a state from round to round.
    settings = {"aggregator": aggregator, "clients": CLIENTS, "rounds": ROUNDS}
    machines.superlink("--simulation")
    run = machines.begin(
        {**settings, "local-epochs": EPOCHS, "deadline": machines.patience},
        "--federation-config", f"num-supernodes={CLIENTS}",
    )  # fmt: skip
    records = machines.finish(run)
    assert [len(record["counted"]) for record in records] == [CLIENTS] * ROUNDS

    found = load_file(machines.output)
    expected = own_simulation(aggregator, CLIENTS, ROUNDS, EPOCHS)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor), name
    said = machines.log("run")
    assert f"round 3: {aggregator} of 4 clients (0, 1, 2, 3)" in said


FAULTS = """
    if client == 1:
        raise RuntimeError("the disk is full")
    if client == 2:
        model[0].bias.data[3] = float("nan")
    if client == 3:
        return Message(RecordDict(), reply_to=message)
    update = """


def test_clients_that_fail_do_not_end_the_run(machines, own_simulation):
    client_app = machines.app / "flower_digits" / "client_app.py"
    whole = client_app.read_text()
    client_app.write_text(whole.replace("\n    update = ", FAULTS))
    machines.superlink("--simulation")
    run = machines.begin(
        {"clients": CLIENTS, "rounds": 2, "quorum": 1, "deadline": machines.patience},
        "--federation-config", f"num-supernodes={CLIENTS}",
    )  # fmt: skip
    first, second = machines.finish(run)

    assert [each["client"] for each in second["counted"]] == ["0"]
    reasons = "; ".join(each["reason"] for each in second["left_out"])
    assert "it failed: " in reasons
    assert "0.bias holds 1 NaN" in reasons
    assert "0 records of metrics" in reasons
    assert len(first["left_out"]) == len(second["left_out"]) == 3
    found = load_file(machines.output)
    for name, tensor in own_simulation("fedavg", 1, 2, EPOCHS, of=CLIENTS).state_dict().items():
        assert torch.equal(found[name], tensor), name
