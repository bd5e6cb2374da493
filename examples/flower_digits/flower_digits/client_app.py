"""What runs where the data is."""

from __future__ import annotations

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from alloykit.federation.update import Update
from alloykit.plugins.flower import from_arrays, to_reply
from flower_digits.task import accuracy, fit, new_model, rows_of, training

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the server's model on the client's digits."""
    client, clients = _place(context)
    rows, settings = rows_of(client, clients), context.run_config
    model = new_model()
    model.load_state_dict(from_arrays(message.content["arrays"]))
    server_round = message.content["config"]["server-round"]
    how = training(settings["local-epochs"], settings["seed"], server_round, client)
    loss = fit(model, rows, how)
    update = Update(str(client), model.state_dict(), num_examples=len(rows))
    return Message(to_reply(update, {"train-loss": loss}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Try the server's model on the client's digits."""
    client, clients = _place(context)
    rows = rows_of(client, clients)
    model = new_model()
    model.load_state_dict(from_arrays(message.content["arrays"]))
    metrics = {"client": client, "num-examples": len(rows), "accuracy": accuracy(model, rows)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _place(context: Context) -> tuple[int, int]:
    """Which client this is, and of how many: Flower numbers them in a simulation."""
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
