"""Rounds of federated learning as rows of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import alloykit
from alloykit.comparison.comparing import Comparison
from alloykit.errors import DataLeak
from alloykit.federation.settings import Federation

ROUNDS: dict[str, Any] = {"rounds": 3, "training": {"epochs": 1, "learning_rate": 0.1}}


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def points(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def partitions() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {name: points(seed, 60) for seed, name in enumerate("abc", start=10)}


def compared(**changes: Any) -> Comparison:
    given: dict[str, Any] = {
        "validation": points(1, 80),
        "test": points(2, 80),
        "partitions": partitions(),
        "federation": ROUNDS,
        "candidates": ["fedavg", "fedadam"],
        "resamples": 100,
    }
    return alloykit.compare({"one": net(1), "two": net(2)}, **{**given, **changes})


def rows_of(found: Comparison) -> dict[str, Any]:
    return {row.candidate: row for row in found.rows if row.family == "federated"}


def test_rounds_are_compared_and_say_what_moved():
    found = rows_of(compared(train=points(3, 40)))
    assert list(found) == [
        "federated (fedavg, 3 rounds)",
        "federated (fedadam, 3 rounds)",
        "federated (fedprox, 3 rounds)",
        "federated (feddf, 3 rounds)",
    ]
    row = found["federated (fedavg, 3 rounds)"]
    # 67 numbers of 4 bytes, to 3 clients and back, three times.
    assert row.notes[0].endswith("4.8 kB of models moved")
    assert [epoch["number"] for epoch in row.history["epochs"]] == [1, 2, 3]
    assert row.history["metric"] == "accuracy"
    assert row.validation["accuracy"] == pytest.approx(row.history["epochs"][-1]["validation"])


def test_the_row_is_what_the_verb_gives():
    found = compared()
    row = rows_of(found)["federated (fedavg, 3 rounds)"]
    x, y = points(2, 80)
    blank = alloykit.retrain(
        net(1), points(1, 80), training={"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    ).model
    run = alloykit.federate(blank, partitions(), **ROUNDS, seed=0)
    with torch.no_grad():
        accuracy = float((run.model(x).argmax(1) == y).float().mean())
    assert row.test["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_without_being_asked_for_one_row_says_how():
    (row,) = rows_of(compared(federation=None, candidates=None)).values()
    assert row.status == "skipped"
    assert "federation=" in row.reason


def test_without_partitions_and_without_train_the_reason_is_said():
    found = rows_of(compared(partitions=None))
    assert {row.reason for row in found.values()} == {"There are no partitions to train on."}
    without = rows_of(compared())["federated (feddf, 3 rounds)"]
    assert "train split" in without.reason


def test_the_federation_as_asked_for_comes_first():
    asked = Federation.of({**ROUNDS, "method": "trimmed_mean", "parameters": {"trim": 0.34}})
    found = compared(federation=asked, candidates=["trimmed_mean", "fedavg"])
    names = list(rows_of(found))
    assert names[0] == "federated (trimmed_mean, 3 rounds)"
    recipe = rows_of(found)[names[0]].recipe["federation"]
    assert (recipe["method"], recipe["parameters"]) == ("trimmed_mean", {"trim": 0.34})


def test_a_federation_with_a_proximal_term_keeps_its_own():
    found = rows_of(compared(federation={**ROUNDS, "proximal": 0.5}))
    assert found["federated (fedprox, 3 rounds)"].recipe["federation"]["proximal"] == 0.5


def test_an_example_of_a_client_in_the_test_split_is_an_error():
    leaking = {**partitions(), "d": points(2, 80)}
    with pytest.raises(DataLeak, match="Partition d"):
        compared(partitions=leaking)


def test_the_model_is_rebuilt_from_the_folder_and_resumed_rows_are_read(tmp_path: Path):
    first = compared(output=tmp_path)
    again = compared(output=tmp_path)
    name = "federated (fedavg, 3 rounds)"
    assert rows_of(first)[name].recipe == rows_of(again)[name].recipe
    x, _ = points(2, 80)
    assert torch.equal(again[name].model()(x), first[name].model()(x))
    with pytest.raises(alloykit.AlloyError):
        compared(output=tmp_path, federation={**ROUNDS, "rounds": 4})
