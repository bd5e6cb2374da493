"""Every form that a model comes in gives the same numbers, and comes back in that form."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import alloykit
from alloykit.checkpoints.digests import fingerprint
from alloykit.errors import (
    CheckpointError,
    InvalidParameter,
    InvalidWeights,
    MismatchedCheckpoints,
    MissingInput,
    OutputExists,
)

COUNT = 3


class Net(nn.Module):
    """Tied tensors, an integer table, a mask of infinities, a scalar and a scratch buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.out = nn.Linear(5, 2)
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("position_ids", torch.arange(4))
        self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
        self.register_buffer("scratch", torch.full((1,), float(seed)), persistent=False)


def nets() -> list[Net]:
    return [Net(seed) for seed in range(COUNT)]


def states() -> list[dict[str, Tensor]]:
    return [net.state_dict() for net in nets()]


def expected(weights=None) -> dict[str, Tensor]:
    shares = torch.tensor(weights or [1.0] * COUNT, dtype=torch.float64)
    shares = shares / shares.sum()
    every = states()
    return {
        name: sum(w * s[name].double() for w, s in zip(shares, every, strict=True))
        if every[0][name].is_floating_point() and name != "mask"
        else every[0][name]
        for name in every[0]
    }


REFERENCE = alloykit.average({f"m{i}": state for i, state in enumerate(states())}, [0.2, 0.3, 0.5])


def arrays(state):
    return {name: tensor.numpy() for name, tensor in state.items()}


def saved(form: str, state: dict[str, Tensor], path: Path) -> Path:
    path = path.with_suffix(f".{form}")
    if form == "safetensors":
        return alloykit.save_checkpoint(state, path)
    if form == "npz":
        np.savez(path, **arrays(state))
    else:
        torch.save(state, path)
    return path


FORMS = ["module", "tensors", "ordered", "arrays", "safetensors", "pt", "pth", "bin", "ckpt", "npz"]


def given(form: str, folder: Path) -> dict[str, object]:
    """The members under the reference's names, so that they are summed in its order."""
    made = {
        "module": nets,
        "tensors": states,
        "ordered": lambda: [OrderedDict(state) for state in states()],
        "arrays": lambda: [arrays(state) for state in states()],
    }.get(form, lambda: [saved(form, s, folder / f"m{i}") for i, s in enumerate(states())])()
    return {f"m{i}": model for i, model in enumerate(made)}


def tensors_of(result) -> dict[str, Tensor]:
    state = result.state_dict() if isinstance(result, nn.Module) else result
    return {name: torch.as_tensor(value) for name, value in state.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bits_and_comes_back(form, tmp_path):
    models = given(form, tmp_path)
    result = alloykit.average(models, [0.2, 0.3, 0.5])
    found = tensors_of(result)
    assert found.keys() == REFERENCE.keys()
    for name in REFERENCE:
        assert found[name].dtype == REFERENCE[name].dtype
        assert torch.equal(found[name], REFERENCE[name]), name
    kinds = {"module": Net, "arrays": np.ndarray}
    if form == "module":
        assert type(result) is Net
    else:
        assert all(isinstance(v, kinds.get(form, Tensor)) for v in result.values())


@pytest.mark.parametrize("form", ["arrays", "tensors"])
def test_lists_give_the_same_bits_and_come_back(form):
    models = [list((arrays(s) if form == "arrays" else s).values()) for s in states()]
    result = alloykit.average({f"m{i}": m for i, m in enumerate(models)}, [0.2, 0.3, 0.5])
    assert isinstance(result, list)
    for value, wanted in zip(result, REFERENCE.values(), strict=True):
        assert type(value) is (np.ndarray if form == "arrays" else Tensor)
        assert torch.equal(torch.as_tensor(value), wanted)


def test_the_numbers_are_those_of_a_hand_made_mean():
    for name, mean in expected([0.2, 0.3, 0.5]).items():
        torch.testing.assert_close(REFERENCE[name].double(), mean.double(), rtol=1e-6, atol=1e-6)
    result = alloykit.average(states())
    for name, mean in expected().items():
        torch.testing.assert_close(result[name].double(), mean.double(), rtol=1e-6, atol=1e-6)


def test_the_order_of_nameless_models_does_not_change_a_bit():
    first = alloykit.average(states())
    second = alloykit.average(states()[::-1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_forms_may_be_mixed(tmp_path):
    models = given("safetensors", tmp_path) | {"m1": nets()[1], "m2": arrays(states()[2])}
    result = alloykit.average(models, {"m2": 0.5, "m0": 0.2, "m1": 0.3})
    assert all(torch.equal(result[name], REFERENCE[name]) for name in REFERENCE)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_models_average_with_plain_ones_and_come_back_wrapped(wrap):
    one, two, three = nets()
    result = alloykit.average({"m0": wrap(one), "m1": two, "m2": wrap(three)}, [0.2, 0.3, 0.5])
    prefix = next(iter(wrap(Net()).state_dict())).removesuffix("scale")
    assert prefix in ("module.", "_orig_mod.")
    found = result.state_dict()
    assert all(torch.equal(found[prefix + name], REFERENCE[name]) for name in REFERENCE)
    plain = alloykit.average({"m0": one, "m1": wrap(two), "m2": three}, [0.2, 0.3, 0.5])
    assert all(torch.equal(tensor, REFERENCE[n]) for n, tensor in plain.state_dict().items())
    as_states = alloykit.average(
        {"m0": wrap(one).state_dict(), "m1": two.state_dict(), "m2": three.state_dict()},
        [0.2, 0.3, 0.5],
    )
    assert list(as_states) == [prefix + name for name in REFERENCE]


@pytest.mark.parametrize("form", ["module", "tensors", "safetensors", "pt"])
def test_tied_tensors_stay_tied_in_memory_and_in_the_file(form, tmp_path):
    models = list(given(form, tmp_path).values())
    result = alloykit.average(models)
    if form == "module":
        assert result.head.weight is result.embed.weight
    else:
        assert result["head.weight"] is result["embed.weight"]
    path = alloykit.average(models, output=tmp_path / "out.safetensors")
    assert set(load_file(path)) == set(REFERENCE) - {"head.weight"}
    again = alloykit.open_checkpoint(path)
    assert again.specs()["head.weight"].place == again.specs()["embed.weight"].place


def test_tied_in_one_member_alone_is_not_tied_in_the_result(tmp_path):
    untied = {name: tensor.clone() for name, tensor in states()[1].items()}
    untied["head.weight"] += 1
    result = alloykit.average([states()[0], untied])
    assert not torch.equal(result["head.weight"], result["embed.weight"])


def test_masks_and_tables_are_copied_and_never_shared_with_a_member():
    every = states()
    result = alloykit.average(every)
    assert torch.equal(result["mask"], every[0]["mask"])
    assert torch.equal(result["position_ids"], torch.arange(4))
    for tensor in result.values():
        tensor.zero_()
    assert all(not torch.equal(state["mask"], torch.zeros(2, 2)) for state in every)
    assert every[0]["position_ids"].tolist() == [0, 1, 2, 3]


def test_non_persistent_buffers_are_those_of_the_first_module():
    assert alloykit.average(nets()[1:]).scratch.item() == 1.0


@pytest.mark.filterwarnings("ignore:BatchNorm statistics were averaged")
def test_counters_take_the_maximum_and_other_unequal_integers_are_all_named():
    layers = [nn.BatchNorm1d(2) for _ in range(2)]
    layers[0].num_batches_tracked.fill_(7)
    layers[1].num_batches_tracked.fill_(12)
    assert alloykit.average(layers).num_batches_tracked.item() == 12
    one = states()[0] | {"epoch": torch.tensor(3)}
    other = states()[1] | {"epoch": torch.tensor(4), "position_ids": torch.arange(4) + 1}
    with pytest.raises(CheckpointError) as caught:
        alloykit.average({"a": one, "b": other})
    assert "epoch   b: int64 values differ from a" in str(caught.value)
    assert "position_ids   b: int64 values differ from a" in str(caught.value)


def broken() -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in states()[1].items()}
    state["out.weight"][0, 0] = math.nan
    state["scale"].fill_(math.nan)
    return state


def test_nan_in_two_tensors_of_one_member_is_named_and_nothing_is_written(tmp_path):
    models = {"good": states()[0], "diverged": broken()}
    with pytest.raises(CheckpointError) as caught:
        alloykit.average(models, output=tmp_path / "out.safetensors")
    text = str(caught.value)
    assert "out.weight   diverged: 1 NaN" in text
    assert "scale   diverged: 1 NaN" in text
    assert "good:" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_member_of_weight_zero_is_absent():
    models = {"good": states()[0], "diverged": broken(), "other": states()[2]}
    result = alloykit.average(models, {"good": 1, "diverged": 0, "other": 1})
    wanted = alloykit.average({"good": states()[0], "other": states()[2]})
    assert all(torch.equal(result[name], wanted[name]) for name in wanted)


def test_a_file_comes_with_its_provenance(tmp_path):
    models = given("safetensors", tmp_path)
    path = alloykit.average(models, [1, 1, 2], output=tmp_path / "out.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("position_ids"), torch.arange(4))
    assert metadata["format"] == "pt"
    assert json.loads(metadata["alloykit"]) == alloykit.__version__
    assert json.loads(metadata["method"]) == "linear"
    assert json.loads(metadata["weights"]) == {"m0": 0.25, "m1": 0.25, "m2": 0.5}
    assert json.loads(metadata["inputs"]) == {
        name: fingerprint(model) for name, model in models.items()
    }
    assert json.loads(metadata["notes"]) == []


def test_an_ordered_method_records_the_order_and_its_defaults(tmp_path):
    models = dict(reversed(given("tensors", tmp_path).items()))
    path = alloykit.merge(models, "exponential", output=tmp_path / "out.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["parameters"]) == {"decay": 0.9, "running": False}
    assert json.loads(metadata["notes"]) == ["members, oldest first: m2, m1, m0"]


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    one = alloykit.average(states(), output=tmp_path / "1.safetensors").read_bytes()
    two = alloykit.average(states()[::-1], output=tmp_path / "2.safetensors").read_bytes()
    assert one == two


def test_a_model_that_comes_twice_counts_twice_in_the_record(tmp_path):
    one, other, _ = states()
    path = alloykit.average([one, other, one], output=tmp_path / "out.safetensors")
    with safe_open(path, "pt") as file:
        weights = json.loads(file.metadata()["weights"])
    assert sorted(weights.values()) == pytest.approx([1 / 3, 2 / 3])


def test_no_output_replaces_a_file_unless_told(tmp_path):
    models = list(given("safetensors", tmp_path).values())
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(OutputExists, match=r"out\.safetensors exists"):
        alloykit.average(models, output=target)
    assert target.read_bytes() == b"precious"
    alloykit.average(models, output=target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m0.safetensors", "m1.safetensors", "m2.safetensors", "out.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("role", ["member", "base", "entry"])
def test_no_output_replaces_an_input_even_when_told(role, tmp_path):
    inputs = given("safetensors", tmp_path)
    target = tmp_path / "link.safetensors"
    if role == "entry":
        torch.save({"ema": states()[0], "model": states()[1]}, run := tmp_path / "run.ckpt")
        inputs["m1"], role = f"{run}#ema", "member"
        target.symlink_to(run)
    else:
        target.hardlink_to(inputs["m1"])
    before = target.read_bytes()
    options = {"output": target, "overwrite": True}
    calls = {
        "member": lambda: alloykit.average(inputs, **options),
        "base": lambda: alloykit.interpolate(inputs["m1"], inputs["m0"], **options),
    }
    with pytest.raises(OutputExists, match="is one of the inputs"):
        calls[role]()
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", ["out.pt", "out", "out.bin", "out.npz"])
def test_another_suffix_would_promise_another_format(name, tmp_path):
    with pytest.raises(InvalidParameter, match=r"give it a name that ends in \.safetensors"):
        alloykit.average(states(), output=tmp_path / name)
    with pytest.raises(InvalidParameter, match=r"\.safetensors"):
        alloykit.save_checkpoint(states()[0], tmp_path / name)


def test_a_missing_folder_is_said_before_any_work(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        alloykit.average(states(), output=tmp_path / "none" / "out.safetensors")


def test_weights_by_recency():
    every = states()
    result = alloykit.average({f"m{i}": s for i, s in enumerate(every)}, recency=0.5)
    for name, mean in expected([1, 2, 4]).items():
        torch.testing.assert_close(result[name].double(), mean.double(), rtol=1e-5, atol=1e-6)
    newest = alloykit.average(every, recency=0.0)
    assert torch.equal(newest["embed.weight"], every[-1]["embed.weight"])
    assert torch.equal(
        alloykit.average(every[::-1], recency=0.0)["embed.weight"], every[0]["embed.weight"]
    )


def test_weights_by_recency_and_by_hand_multiply():
    result = alloykit.average(states(), [1, 1, 0], recency=0.5)
    for name, mean in expected([1, 2, 0]).items():
        torch.testing.assert_close(result[name].double(), mean.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recency", [-0.5, 2, math.nan])
def test_recency_outside_its_range(recency):
    with pytest.raises(InvalidParameter, match=r"'recency' must be a number in \[0, 1\]"):
        alloykit.average(states(), recency=recency)


def classifier(good: float) -> nn.Module:
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[good, 0.0], [-good, 0.0]]))
    return net


VALIDATION = (torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [-3.0, 0.0]]),
              torch.tensor([0, 1, 0, 0]))  # fmt: skip


def test_weights_by_a_metric():
    models = {"good": classifier(2.0), "bad": classifier(-2.0)}  # right on 3 of 4, on 1 of 4
    result = alloykit.average(models, "accuracy", validation=VALIDATION)
    assert result.weight[0, 0].item() == pytest.approx(0.75 * 2 - 0.25 * 2)
    by_loss = alloykit.average(list(models.values()), "log_loss", validation=VALIDATION)
    losses = [
        nn.functional.cross_entropy(net(VALIDATION[0]), VALIDATION[1]).item()
        for net in models.values()
    ]
    share = math.exp(-losses[0]) / sum(math.exp(-loss) for loss in losses)
    assert by_loss.weight[0, 0].item() == pytest.approx(2 * share - 2 * (1 - share), rel=1e-5)


def test_weights_by_a_metric_need_modules_and_data(tmp_path):
    with pytest.raises(MissingInput, match="pass modules and validation="):
        alloykit.average([classifier(1.0), classifier(2.0)], "accuracy")
    with pytest.raises(MissingInput, match="For files, use compare"):
        alloykit.average(given("pt", tmp_path), "accuracy", validation=VALIDATION)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1, 2], "2 weights for 3 models"),
        ([1, -1, 1], "weight 2 is negative"),
        ([math.nan, 1, 1], "weight 1 is nan"),
        ([0, 0, 0], "all weights are zero"),
        ({"a": 1, "b": 2, "c": 3}, "Weights are for a, b, c; the models are m0, m1, m2"),
        ({"m0": 1, "m1": 2}, "Weights are for m0, m1; the models are m0, m1, m2"),
    ],
)
def test_weights_that_cannot_be_used(weights, says, tmp_path):
    with pytest.raises(InvalidWeights, match=says):
        alloykit.average(given("tensors", tmp_path), weights)


def test_weights_must_sum_to_one_where_asked(tmp_path):
    with pytest.raises(InvalidWeights, match=r"they sum to 1\.2"):
        alloykit.average(states(), [0.4, 0.4, 0.4], strict=True)


def test_weights_go_by_the_names_of_files_too(tmp_path):
    models = list(given("pt", tmp_path).values())
    result = alloykit.average(models[::-1], {"m0": 0.2, "m2": 0.5, "m1": 0.3})
    assert all(torch.equal(result[name], REFERENCE[name]) for name in REFERENCE)


def test_names_may_be_numbers():
    result = alloykit.average({1: states()[0], 2: states()[1]}, {2: 0.0, 1: 1.0})
    assert torch.equal(result["out.weight"], states()[0]["out.weight"])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_models(count, tmp_path):
    with pytest.raises(MissingInput, match="at least two models"):
        alloykit.average(states()[:count])


def test_models_that_do_not_match_are_explained():
    other = states()[1] | {"out.weight": torch.zeros(3, 5)}
    del other["scale"]
    with pytest.raises(MismatchedCheckpoints) as caught:
        alloykit.average({"a": states()[0], "b": other})
    for text in ("2 checkpoints cannot be merged", "scale", "a: [2, 5]", "b: [3, 5]"):
        assert text in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["module", "tensors"])
def test_an_output_dtype_is_kept_by_every_form(form, dtype, tmp_path):
    result = alloykit.average(given(form, tmp_path), dtype=dtype)
    found = tensors_of(result)
    assert found["out.weight"].dtype == dtype
    assert found["position_ids"].dtype == torch.int64
    if form == "module":
        assert result.head.weight is result.embed.weight
        assert all(p.dtype == dtype for p in result.parameters())
    path = alloykit.average(given(form, tmp_path), dtype=dtype, output=tmp_path / "o.safetensors")
    assert load_file(path)["out.weight"].dtype == dtype


def test_members_of_mixed_precision_give_the_wider_one():
    one, two, _ = nets()
    result = alloykit.average([one.half(), two])
    assert result.out.weight.dtype == torch.float32
    torch.testing.assert_close(
        result.out.weight, (one.out.weight.float() + two.out.weight) / 2, rtol=1e-6, atol=1e-7
    )


def test_numpy_lacks_bfloat16(tmp_path):
    with pytest.raises(InvalidParameter, match=r"NumPy has no torch\.bfloat16"):
        alloykit.average(given("arrays", tmp_path), dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_files_are_averaged_in_float32_and_rounded_once(dtype, tmp_path):
    values = [torch.tensor([1.0, 2.0, 448.0]), torch.tensor([1.25, -0.5, 448.0])]
    for index, value in enumerate(values):
        save_file({"w": value.to(dtype)}, tmp_path / f"{index}.safetensors")
    result = alloykit.average(sorted(tmp_path.iterdir()))["w"]
    mean = (values[0].to(dtype).float() + values[1].to(dtype).float()) / 2
    assert torch.equal(result.float(), mean.to(dtype).float())


def test_twenty_members_and_a_single_stream(tmp_path):
    paths = [
        alloykit.save_checkpoint(Net(seed).state_dict(), tmp_path / f"{seed:02}.safetensors")
        for seed in range(20)
    ]
    result = alloykit.average(paths)
    mean = torch.stack([Net(seed).out.weight.detach().double() for seed in range(20)]).mean(0)
    torch.testing.assert_close(result["out.weight"].double(), mean, rtol=1e-5, atol=1e-7)


def test_interpolation_walks_from_base_to_model_and_reads_both_files(tmp_path):
    models = given("safetensors", tmp_path)
    result = alloykit.interpolate(models["m0"], models["m1"], 0.25)
    base, tuned, *_ = states()
    torch.testing.assert_close(
        result["out.weight"], base["out.weight"] * 0.75 + tuned["out.weight"] * 0.25
    )
    path = alloykit.interpolate(models["m0"], models["m1"], output=tmp_path / "half.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["parameters"]) == {"alpha": 0.5}
    assert json.loads(metadata["inputs"]) == {
        "base": fingerprint(models["m0"]),
        "m1": fingerprint(models["m1"]),
    }
