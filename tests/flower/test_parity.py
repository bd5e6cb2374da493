"""The numbers of Flower's own strategies, to float32 rounding, for every aggregator that both have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.checks import Checks
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import ServerState
from alloykit.federation.dp_adaptive_clipping import noise_shares
from alloykit.federation.update import Update

Tensors = dict[str, torch.Tensor]
CLIENTS, ROUNDS = 11, 4


def start() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (7, 5), "0.bias": (7,), "2.weight": (3, 7), "2.bias": (3,)}
    return {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()}


def changes(round_: int, server: Tensors) -> list[Tensors]:
    """What each client's training changes: a common way and one of its own, some far off."""
    generator = torch.Generator().manual_seed(round_)
    common = {n: torch.randn(t.shape, generator=generator) * 0.05 for n, t in server.items()}
    own = [0.02 if client % 4 else 0.3 for client in range(CLIENTS)]
    return [
        {n: c + torch.randn(c.shape, generator=generator) * size for n, c in common.items()}
        for size in own
    ]


def updates(round_: int, server: Tensors, examples: Callable[[int], int]) -> list[Update]:
    return [
        Update(
            f"c{client:02}",
            {name: server[name] + change[name] for name in server},
            num_examples=examples(client),
            loss=0.1 + 0.2 * client,
        )
        for client, change in enumerate(changes(round_, server))
    ]


def flowers_round(strategy: Any, round_: int, server: Tensors, sent: list[Update]) -> Tensors:
    grid = Mock()
    grid.get_node_ids.return_value = range(1, len(sent) + 1)
    list(strategy.configure_train(round_, ArrayRecord(server), ConfigRecord(), grid))
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord(update.model),
                    "metrics": MetricRecord(
                        {"num-examples": int(update.num_examples), "train_loss": update.loss}
                    ),
                }
            ),
            message_type="train",
            dst_node_id=node,
        )
        for node, update in enumerate(sent, start=1)
    ]
    arrays, _ = strategy.aggregate_train(round_, replies)
    return {name: tensor.float() for name, tensor in arrays.to_torch_state_dict().items()}


def unequal(client: int) -> int:
    return 20 + 30 * client


def equal(client: int) -> int:
    return 100


SAME = [
    ("fedavg", {}, flower.FedAvg, {}, unequal),
    ("fedavgm", {"server_learning_rate": 0.7, "server_momentum": 0.9}, flower.FedAvgM, {"server_learning_rate": 0.7, "server_momentum": 0.9}, unequal),
    ("fedadam", {"compat": "flower"}, flower.FedAdam, {}, unequal),
    ("fedadam", {"compat": "flower", "server_learning_rate": 0.02, "beta_1": 0.5, "beta_2": 0.9, "tau": 0.01}, flower.FedAdam, {"eta": 0.02, "beta_1": 0.5, "beta_2": 0.9, "tau": 0.01}, unequal),
    ("fedyogi", {}, flower.FedYogi, {}, unequal),
    ("fedadagrad", {}, flower.FedAdagrad, {}, unequal),
    ("qfedavg", {"client_learning_rate": 0.1, "q": 0.5}, flower.QFedAvg, {"client_learning_rate": 0.1, "q": 0.5}, unequal),
    ("qfedavg", {"client_learning_rate": 0.5}, flower.QFedAvg, {"client_learning_rate": 0.5}, unequal),
    ("median", {}, flower.FedMedian, {}, unequal),
    ("trimmed_mean", {"trim": 0.2}, flower.FedTrimmedAvg, {"beta": 0.2}, unequal),
    ("krum", {"num_malicious": 3}, flower.Krum, {"num_malicious_nodes": 3}, unequal),
    ("multi_krum", {"num_malicious": 3, "num_selected": 5}, flower.MultiKrum, {"num_malicious_nodes": 3, "num_nodes_to_select": 5}, equal),
    ("bulyan", {"num_malicious": 2, "compat": "flower"}, flower.Bulyan, {"num_malicious_nodes": 2}, unequal),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters", "strategy", "settings", "examples"), SAME, ids=[f"{i}-{s[0]}" for i, s in enumerate(SAME)]
)  # fmt: skip
def test_same_numbers_over_several_rounds(name, parameters, strategy, settings, examples):
    run_both(as_aggregator(name, parameters), strategy(**settings), examples)


@pytest.mark.parametrize("clip_norm", [0.2, 1.0, 100.0])
def test_same_numbers_with_clipping_and_without_noise(clip_norm: float):
    private = {"clip_norm": clip_norm, "noise_multiplier": 0.0}
    theirs = flower.DifferentialPrivacyServerSideFixedClipping(
        flower.FedAvg(), 0.0, clip_norm, CLIENTS
    )
    run_both(as_aggregator("dp_fixed_clipping", private), theirs, equal)


def test_same_noise_shares_for_adaptive_clipping():
    theirs = flower.DifferentialPrivacyServerSideAdaptiveClipping(flower.FedAvg(), 0.8, 100)
    assert noise_shares(0.8, None, 100) == pytest.approx(
        (theirs.noise_multiplier, theirs.clipped_count_stddev), rel=1e-12
    )


def run_both(aggregator, strategy, examples) -> None:
    """Both go their own way, with the same changes of the clients in each round."""
    ours, theirs, state = start(), start(), ServerState()
    for round_ in range(1, ROUNDS + 1):
        done = aggregate_updates(
            ours, updates(round_, ours, examples), aggregator, state=state,
            checks=Checks(norm_ratio=None),
        )  # fmt: skip
        assert done.record.left_out == ()
        ours, state = done.tensors, done.state
        theirs = flowers_round(strategy, round_, theirs, updates(round_, theirs, examples))
        assert list(ours) == list(theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
