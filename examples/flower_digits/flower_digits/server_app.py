"""What runs on the server."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import save_file

from alloykit.plugins.flower import AlloyStrategy, from_arrays, to_arrays
from flower_digits.task import accuracy, digits, new_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; write the model, and what happened in each round beside it."""
    settings = context.run_config
    _, held_out = digits()

    def tested(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = new_model()
        model.load_state_dict(from_arrays(arrays))
        return MetricRecord({"accuracy": accuracy(model, held_out)})

    strategy = AlloyStrategy(
        settings["aggregator"],
        quorum=settings["quorum"],
        deadline=settings["deadline"],
        min_train_nodes=settings["quorum"],
        min_available_nodes=settings["clients"],
        node_wait=settings["node-wait"],
        fraction_evaluate=settings["fraction-evaluate"],
    )
    result = strategy.start(
        grid,
        to_arrays(new_model(settings["seed"])),
        num_rounds=settings["rounds"],
        evaluate_fn=tested,
    )
    output = Path(settings["output"])
    save_file(from_arrays(result.arrays), output)
    records = [record.to_json() for record in strategy.records]
    output.with_suffix(".json").write_text(json.dumps(records, indent=2), encoding="utf-8")
