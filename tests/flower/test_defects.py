"""Where Flower's strategies give wrong numbers, fail or say nothing, and what is given here instead.

Each test shows both sides. One whose first half fails tells that Flower has mended the matter.
"""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import compute_distances, select_multikrum

from alloykit.errors import InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.checks import Checks
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.krum_scores import squared_distances
from alloykit.federation.update import Aggregated, Update

Tensors = dict[str, torch.Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
AdaptiveClipping = flower.DifferentialPrivacyServerSideAdaptiveClipping
ANYBODY = Checks(norm_ratio=None, examples_ratio=None)
FixedClipping = flower.DifferentialPrivacyServerSideFixedClipping


def replies(models: list[Tensors], examples: list[Any] | None = None) -> list[Message]:
    counts = examples or [10] * len(models)
    return [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord(model),
                    "metrics": MetricRecord({"num-examples": count, "train_loss": 1.0}),
                }
            ),
            message_type="train",
            dst_node_id=node,
        )
        for node, (model, count) in enumerate(zip(models, counts, strict=True), start=1)
    ]


def theirs(
    strategy: Any,
    server: Tensors,
    models: list[Tensors],
    examples: list[Any] | None = None,
    round_: int = 1,
) -> Tensors | None:
    grid = Mock()
    grid.get_node_ids.return_value = range(1, max(2, len(models)) + 1)
    list(strategy.configure_train(round_, ArrayRecord(server), ConfigRecord(), grid))
    arrays, _ = strategy.aggregate_train(round_, replies(models, examples))
    return None if arrays is None else arrays.to_torch_state_dict()


def ours(
    method: str,
    server: Tensors,
    models: list[Tensors],
    examples: list[Any] | None = None,
    *,
    checks: Checks | None = None,
    **parameters: Any,
) -> Aggregated:
    counts = examples or [10] * len(models)
    sent = [
        Update(f"c{i:02}", model, num_examples=count, loss=1.0)
        for i, (model, count) in enumerate(zip(models, counts, strict=True))
    ]
    return aggregate_updates(server, sent, as_aggregator(method, parameters), checks=checks)


def reasons(done: Aggregated) -> list[str]:
    return [each.reason for each in done.record.left_out]


def around(server: Tensors, count: int, size: float = 0.01) -> list[Tensors]:
    """Clients' models near the server's; whole numbers one higher."""
    generator = torch.Generator().manual_seed(2)
    return [
        {
            n: t + torch.randn(t.shape, generator=generator) * size
            if t.is_floating_point()
            else t + 1
            for n, t in server.items()
        }
        for _ in range(count)
    ]


SERVER = {"w": torch.full((8, 8), 0.5), "b": torch.zeros(8)}
COUNTED = {**SERVER, "bn.running_var": torch.ones(8), "bn.num_batches_tracked": torch.tensor(5)}


# Krum


def test_distances_of_small_changes_cancel_in_float32():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(1_000_000, generator=generator) * 0.05
    changes = [torch.randn(1_000_000, generator=generator) * 1e-5 for _ in range(6)]
    changes[4] *= 3.0  # Clients far off, which must not be chosen.
    changes[5] *= 3.0
    models = [{"w": weights + change} for change in changes]
    rows = torch.stack([model["w"].double() - weights.double() for model in models])
    truth = torch.cdist(rows, rows).square().numpy()
    off = ~np.eye(6, dtype=bool)

    flowers = compute_distances([ArrayRecord(model) for model in models])
    assert np.abs(flowers - truth)[off].max() > 0.3 * truth[off].max()
    assert flowers[off].min() < 0.0

    found = squared_distances((rows @ rows.T).numpy())
    assert np.abs(found / np.where(off, truth, 1.0) - 1.0)[off].max() < 1e-4
    done = ours("multi_krum", {"w": weights}, models, num_malicious=1, num_selected=4)
    assert [bool(each.coefficient) for each in done.record.counted] == [True] * 4 + [False] * 2


def test_krum_goes_on_with_fewer_clients_than_its_proof_needs():
    models = around(SERVER, 4)
    assert theirs(flower.Krum(num_malicious_nodes=2), SERVER, models) is not None
    with pytest.raises(InvalidParameter, match="needs at least 7 clients"):
        ours("krum", SERVER, models, num_malicious=2)


def test_bulyan_with_too_few_clients_says_so_in_a_log_only():
    assert theirs(flower.Bulyan(num_malicious_nodes=1), SERVER, around(SERVER, 6)) is None
    with pytest.raises(InvalidParameter, match="needs at least 7 clients"):
        ours("bulyan", SERVER, around(SERVER, 6), num_malicious=1)


def test_names_in_another_order_scramble_krums_distances():
    models = around(COUNTED, 5)
    turned = [models[0], dict(reversed(models[1].items())), *models[2:]]
    records = [[ArrayRecord(model) for model in sent] for sent in (models, turned)]
    assert not np.allclose(compute_distances(records[0]), compute_distances(records[1]))
    found = [ours("krum", COUNTED, sent, num_malicious=1) for sent in (models, turned)]
    assert all(torch.equal(found[0].tensors[name], found[1].tensors[name]) for name in COUNTED)


def test_claimed_examples_weigh_what_multi_krum_selected():
    models = around({"w": torch.zeros(1)}, 7)
    examples = [1, 1, 10**9, 1, 1, 1, 1]
    contents = [reply.content for reply in replies(models, examples)]
    assert any(content is contents[2] for content in select_multikrum(contents, 1, 6))
    strategy = flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=6)
    found = theirs(strategy, {"w": torch.zeros(1)}, models, examples)
    torch.testing.assert_close(found["w"], models[2]["w"], check_dtype=False)
    done = ours("multi_krum", {"w": torch.zeros(1)}, models, examples, num_malicious=1)
    assert {each.coefficient for each in done.record.counted} == {0.0, 1 / 6}


# Differential privacy


@pytest.mark.parametrize("clip_norm", [0.1, 100.0])
def test_adaptive_clipping_moves_away_from_the_quantile(clip_norm: float):
    server = {"w": torch.zeros(1)}
    models = [{"w": torch.tensor([float(norm)])} for norm in range(5, 16)]
    strategy = AdaptiveClipping(flower.FedAvg(), 0.0, 11, initial_clipping_norm=clip_norm)
    state, aggregator = None, as_aggregator(
        "dp_adaptive_clipping", {"noise_multiplier": 0.0, "initial_clip_norm": clip_norm}
    )  # fmt: skip
    for round_ in range(1, 61):
        theirs(strategy, server, models, round_=round_)
        sent = [Update(f"c{i:02}", model) for i, model in enumerate(models)]
        state = aggregate_updates(server, sent, aggregator, state=state).state
    assert strategy.clipping_norm < 0.001 or strategy.clipping_norm > 30_000
    assert 8.0 < state.numbers["clip_norm"] < 12.0


def test_adaptive_clippings_noise_is_that_of_the_next_norm():
    server = {"w": torch.zeros(40_000)}
    models = [{"w": torch.full((40_000,), 1.0)} for _ in range(20)]
    np.random.seed(0)  # noqa: NPY002 (Flower draws from NumPy's global state)
    strategy = AdaptiveClipping(flower.FedAvg(), 0.8, 20, initial_clipping_norm=1.0)
    found = theirs(strategy, server, models)
    assert strategy.clipping_norm < 0.95
    used, after = (strategy.noise_multiplier * norm / 20 for norm in (1.0, strategy.clipping_norm))
    assert found["w"].std().item() == pytest.approx(after, rel=0.02)
    made = ours(
        "dp_adaptive_clipping", server, models, noise_multiplier=0.8, initial_clip_norm=1.0, seed=1
    )
    assert made.tensors["w"].std().item() == pytest.approx(used, rel=0.02)


def test_one_client_moves_the_private_mean_by_the_whole_clip_norm():
    server = {"w": torch.zeros(4)}
    models = [{"w": torch.zeros(4) + 1e-4}] * 19 + [{"w": torch.tensor([5.0, 0.0, 0.0, 0.0])}]
    examples = [1] * 19 + [10**9]
    found = theirs(FixedClipping(flower.FedAvg(), 0.0, 1.0, 20), server, models, examples)
    assert found["w"].norm().item() == pytest.approx(1.0, rel=1e-3)
    private = {"clip_norm": 1.0, "noise_multiplier": 0.0}
    done = ours("dp_fixed_clipping", server, models, examples, checks=ANYBODY, **private)
    assert done.tensors["w"].norm().item() == pytest.approx(1 / 20, rel=0.01)


def test_a_client_that_changes_nothing_ends_a_private_run():
    models = [SERVER, *around(SERVER, 2)]
    for strategy in (
        FixedClipping(flower.FedAvg(), 0.0, 1.0, 3),
        AdaptiveClipping(flower.FedAvg(), 0.0, 3),
    ):
        with pytest.raises(ZeroDivisionError):
            theirs(strategy, SERVER, models)
    for method, parameters in (
        ("dp_fixed_clipping", {"clip_norm": 1.0}),
        ("dp_adaptive_clipping", {}),
    ):
        done = ours(method, SERVER, models, noise_multiplier=0.0, **parameters)
        assert len(done.record.counted) == 3


def test_no_replies_end_a_run_with_adaptive_clipping():
    with pytest.raises(ZeroDivisionError):
        theirs(AdaptiveClipping(flower.FedAvg(), 0.0, 3), SERVER, [])
    done = ours("dp_adaptive_clipping", SERVER, [], noise_multiplier=0.0)
    assert done.record.kept_server == "0 updates of at least 1 can be used"
    assert torch.equal(done.tensors["w"], SERVER["w"])


# Dtypes and buffers


def test_whole_numbers_become_float64():
    models = around(COUNTED, 3)
    for strategy in (flower.FedAvg(), flower.FedMedian(), flower.FedAdam()):
        assert theirs(strategy, COUNTED, models)["bn.num_batches_tracked"].dtype == torch.float64
    for method in ("fedavg", "median", "fedadam"):
        made = ours(method, COUNTED, models).tensors["bn.num_batches_tracked"]
        assert (made.dtype, made.item()) == (torch.int64, 6)


def test_qfedavg_crashes_on_whole_numbers():
    models = around(COUNTED, 3)
    with pytest.raises(TypeError):  # NumPy's UFuncTypeError
        theirs(flower.QFedAvg(client_learning_rate=0.1), COUNTED, models)
    made = ours("qfedavg", COUNTED, models, client_learning_rate=0.1).tensors
    assert made["bn.num_batches_tracked"].item() == 6


def test_fedadam_doubles_the_size_of_the_model():
    assert theirs(flower.FedAdam(), SERVER, around(SERVER, 3))["w"].dtype == torch.float64
    assert ours("fedadam", SERVER, around(SERVER, 3)).tensors["w"].dtype == torch.float32


def test_statistics_of_batchnorm_are_optimised():
    models = [{**COUNTED, "bn.running_var": torch.full((8,), 0.02)} for _ in range(3)]
    server, found = {**COUNTED, "bn.running_var": torch.full((8,), 0.05)}, None
    strategy = flower.FedAdam(eta=0.1)
    found = theirs(strategy, server, models)["bn.running_var"]
    assert found.max() < 0.0  # A variance.
    made = ours("fedadam", server, models, server_learning_rate=0.1).tensors["bn.running_var"]
    torch.testing.assert_close(made, torch.full((8,), 0.02))


def test_fedavgm_writes_tensors_under_other_names():
    models = [dict(reversed(model.items())) for model in around(COUNTED, 3)]
    strategy = flower.FedAvgM(server_momentum=0.9)
    with pytest.raises(ValueError, match="broadcast"):  # Where shapes differ; else it is silent.
        theirs(
            strategy,
            {"w": torch.zeros(2), "v": torch.zeros(3)},
            [{"v": torch.ones(3), "w": torch.ones(2)}] * 2,
        )
    found = theirs(flower.FedAvgM(server_momentum=0.9), COUNTED, models)
    assert found["bn.num_batches_tracked"].shape == (8, 8)
    made = ours("fedavgm", COUNTED, models).tensors
    assert made["bn.num_batches_tracked"].item() == 6


def test_the_first_clients_half_precision_is_everybodys():
    models = around(SERVER, 3)
    models[0] = {name: tensor.half() for name, tensor in models[0].items()}
    assert theirs(flower.FedAvg(), SERVER, models)["w"].dtype == torch.float16
    done = ours("fedavg", SERVER, models)
    assert done.tensors["w"].dtype == torch.float32
    assert len(reasons(done)) == 1
    assert "float16" in reasons(done)[0]
    every = ours("fedavg", SERVER, models, checks=Checks(dtypes="kind"))
    assert len(every.record.counted) == 3
    mean = sum(model["w"].double() for model in models) / 3
    torch.testing.assert_close(every.tensors["w"].double(), mean, rtol=0, atol=1e-7)


def test_bfloat16_cannot_be_sent():
    half = {name: tensor.bfloat16() for name, tensor in SERVER.items()}
    with pytest.raises(TypeError):
        Array(half["w"])
    done = ours("fedavg", half, [half, {name: tensor + 1.0 for name, tensor in half.items()}])
    assert done.tensors["w"].dtype == torch.bfloat16
    assert done.tensors["w"][0, 0].item() == 1.0


# What clients send


@pytest.mark.parametrize(("strategy", "method"), [(flower.FedAvg, "fedavg"), (flower.FedMedian, "median"), (flower.FedAdam, "fedadam")])  # fmt: skip
def test_one_nan_spoils_the_model(strategy, method: str):
    models = around(SERVER, 5)
    models[3]["w"][0, 0] = math.nan
    assert theirs(strategy(), SERVER, models)["w"].isnan().any()
    done = ours(method, SERVER, models)
    assert reasons(done) == ["w holds 1 NaN"]
    assert torch.isfinite(done.tensors["w"]).all()


def test_a_single_number_counts_as_a_whole_tensor():
    models = around(SERVER, 5)
    models[3]["b"] = torch.full((1,), 40.0)
    assert theirs(flower.FedAvg(), SERVER, models)["b"].min() > 7.0
    done = ours("fedavg", SERVER, models)
    assert reasons(done) == ["b is [1], the server's [8]"]
    assert done.tensors["b"].abs().max() < 0.1


def test_a_model_of_another_shape_replaces_the_servers():
    models = [{"w": torch.zeros(3, 3), "b": torch.zeros(8)}] * 3
    assert theirs(flower.FedAvg(), SERVER, models)["w"].shape == (3, 3)
    done = ours("fedavg", SERVER, models)
    assert done.tensors["w"].shape == (8, 8)
    assert done.record.kept_server


def test_the_trimmed_mean_blames_beta_for_a_shape():
    models = around(SERVER, 5)
    models[3]["w"] = torch.zeros(8, 9)
    with pytest.raises(Exception, match=r"beta=0.2 is too large|all input arrays"):
        theirs(flower.FedTrimmedAvg(), SERVER, models)
    assert reasons(ours("trimmed_mean", SERVER, models)) == ["w is [8, 9], the server's [8, 8]"]


def test_a_missing_tensor_ends_the_run():
    models = around(SERVER, 5)
    del models[3]["b"]
    with pytest.raises(Exception, match="must have the same keys"):
        theirs(flower.FedAvg(), SERVER, models)
    assert reasons(ours("fedavg", SERVER, models)) == ["1 tensor (b) missing"]


@pytest.mark.parametrize("examples", [[0, 0, 0], [0.0, 0.0, 0.0]])
def test_no_examples_at_all_end_the_run(examples):
    with pytest.raises(ZeroDivisionError):
        theirs(flower.FedAvg(), SERVER, around(SERVER, 3), examples)
    done = ours("fedavg", SERVER, around(SERVER, 3), examples)
    assert len(reasons(done)) == 3
    assert torch.equal(done.tensors["w"], SERVER["w"])


@pytest.mark.parametrize("claim", [-50, math.nan, math.inf])
def test_impossible_numbers_of_examples_are_taken(claim):
    models = around(SERVER, 3)
    found = theirs(flower.FedAvg(), SERVER, models, [10, 10, claim])["w"]
    honest = (models[0]["w"] + models[1]["w"]) / 2
    assert not torch.allclose(found.float(), honest, atol=1e-3)
    done = ours("fedavg", SERVER, models, [10, 10, claim])
    assert len(reasons(done)) == 1
    torch.testing.assert_close(done.tensors["w"], honest)


def test_a_claim_of_many_examples_takes_over():
    models = around(SERVER, 5)
    models[3] = {name: tensor + 3.0 for name, tensor in SERVER.items()}
    examples = [10, 10, 10, 10**15, 10]
    assert theirs(flower.FedAvg(), SERVER, models, examples)["w"].mean() > 3.4
    done = ours("fedavg", SERVER, models, examples)
    assert len(reasons(done)) == 1
    assert done.tensors["w"].mean() < 0.6


def test_one_client_counts_five_times():
    models = around(SERVER, 5)
    loud = {name: tensor + 3.0 for name, tensor in SERVER.items()}
    assert theirs(flower.FedAvg(), SERVER, [*models, *[loud] * 5])["w"].mean() > 1.9
    sent = [Update(f"c{i}", model) for i, model in enumerate(models)] + [Update("z", loud)] * 5
    done = aggregate_updates(SERVER, sent, as_aggregator("fedavg"), checks=ANYBODY)
    assert reasons(done) == ["it sent a second update in this round"] * 4
    assert done.tensors["w"].mean().item() == pytest.approx(1.0, abs=0.01)
