"""The verbs as a user calls them; their parts have tests of their own."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import alloykit
from alloykit.errors import (
    CheckpointError,
    InvalidParameter,
    MissingInput,
    OutputExists,
    UnknownName,
)

INPUTS = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
DATA = (INPUTS, (INPUTS[:, 0] > 1).long())


def norm_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    net.train()(INPUTS[:32])
    return net.eval()


def states(count: int = 2) -> list[dict[str, torch.Tensor]]:
    return [{"w": torch.full((2,), float(i)), "v": torch.zeros(1)} for i in range(count)]


def test_every_public_name_is_there_and_every_verb_is_documented():
    for name in alloykit.__all__:
        value = getattr(alloykit, name)
        assert inspect.getdoc(value), name
    assert set(alloykit.__all__) <= set(dir(alloykit))
    with pytest.raises(AttributeError, match="no attribute 'averge'"):
        alloykit.averge  # noqa: B018


VERBS = [
    alloykit.merge,
    alloykit.average,
    alloykit.interpolate,
    alloykit.soup,
    alloykit.inspect,
    alloykit.diagnose,
    alloykit.save_checkpoint,
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_argument_is_documented(verb):
    text = inspect.getdoc(verb) or ""
    for name, parameter in inspect.signature(verb).parameters.items():
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        assert f"    {star}{name}: " in text, name


def test_methods_lists_what_can_be_called():
    listed = alloykit.methods()
    assert {row["sort"] for row in listed} == {
        "merge method", "ensemble rule", "soup", "fusion head", "distillation loss",
        "aggregator",
    }  # fmt: skip
    exponential = next(row for row in listed if row["name"] == "exponential")
    assert exponential["parameters"] == "decay: 'float' = 0.9, running: 'bool' = False"
    interpolate = next(row for row in listed if row["name"] == "interpolate")
    assert interpolate["needs"] == "base"
    assert "2109.01903" in interpolate["paper"]
    assert all(isinstance(value, str) for row in listed for value in row.values())


def test_batch_norm_that_was_only_averaged_is_warned_of(tmp_path):
    nets = [norm_net(0), norm_net(1)]
    say = "BatchNorm statistics were averaged, not re-estimated"
    with pytest.warns(UserWarning, match=say):
        alloykit.average(nets)
    with pytest.warns(UserWarning, match=say):
        alloykit.average([net.state_dict() for net in nets])
    with pytest.warns(UserWarning, match=say):
        alloykit.interpolate(nets[0], nets[1])
    with pytest.warns(UserWarning, match=say):
        alloykit.average(nets, output=tmp_path / "out.safetensors")


def test_a_model_alone_keeps_its_statistics_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alloykit.merge([norm_net(0)])
        alloykit.average([norm_net(0), norm_net(1)], [1, 0])


def test_batch_norm_is_re_estimated_on_the_data_given(tmp_path):
    nets = [norm_net(0), norm_net(1)]
    result = alloykit.average(nets, batch_norm=DATA)
    hidden = result[0](INPUTS).detach()
    torch.testing.assert_close(result[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(result[1].running_var, hidden.var(0))
    path = alloykit.average(nets, batch_norm=DATA, output=tmp_path / "out.safetensors")
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("1.running_mean"), result[1].running_mean)
        assert torch.equal(file.get_tensor("0.weight"), result[0].weight)
        assert file.metadata()["method"] == '"linear"'


@pytest.mark.parametrize("form", ["state", "file"])
def test_data_for_batch_norm_is_not_dropped_in_silence(form, tmp_path):
    models = [norm_net(seed).state_dict() for seed in range(2)]
    if form == "file":
        models = [alloykit.save_checkpoint(m, tmp_path / f"{i}.safetensors")
                  for i, m in enumerate(models)]  # fmt: skip
    with pytest.raises(MissingInput, match="Re-estimating BatchNorm runs the model: give modules"):
        alloykit.average(models, batch_norm=DATA)


def test_merging_does_not_change_the_members():
    nets = [norm_net(0), norm_net(1)]
    before = [{n: t.clone() for n, t in net.state_dict().items()} for net in nets]
    alloykit.average(nets, batch_norm=DATA)
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_a_base_where_none_is_needed_is_left_alone():
    odd = {"other": torch.full((9,), float("nan"))}
    result = alloykit.merge(states(), "linear", base=odd)
    assert torch.equal(result["w"], alloykit.average(states())["w"])


def test_a_base_in_memory_and_its_member_may_be_one():
    (state,) = states(1)
    result = alloykit.interpolate(state, state, alpha=0.7)
    assert all(torch.equal(result[name], state[name]) for name in state)
    assert result["w"] is not state["w"]


def test_interpolation_extrapolates_and_takes_numpys_numbers(tmp_path):
    base, tuned = states()
    assert alloykit.interpolate(base, tuned, alpha=3)["w"].tolist() == [3.0, 3.0]
    path = alloykit.interpolate(
        base, tuned, alpha=np.float32(0.25), output=tmp_path / "out.safetensors"
    )
    with safe_open(path, "pt") as file:
        assert file.metadata()["parameters"] == '{"alpha": 0.25}'


def test_progress_is_told_of_bytes(tmp_path):
    told = []
    alloykit.average(
        states(), progress=lambda *step: told.append(step), output=tmp_path / "o.safetensors"
    )
    assert told == [("", 12, 12)]


@pytest.mark.parametrize("verb", [alloykit.merge, alloykit.average, alloykit.inspect])
@pytest.mark.parametrize("models", [[], {}, iter(())], ids=["list", "mapping", "iterator"])
def test_no_models(verb, models):
    with pytest.raises(MissingInput, match="none were given"):
        verb(models)


def test_a_soup_of_nothing():
    with pytest.raises(MissingInput, match="none were given"):
        alloykit.soup([], validation=DATA)


def test_unknown_methods_are_suggested():
    with pytest.raises(UnknownName, match="Did you mean 'linear'"):
        alloykit.merge(states(), "linaer")
    with pytest.raises(UnknownName, match=r"There is no soup 'greedi'\. Did you mean 'greedy'"):
        alloykit.soup([norm_net(0), norm_net(1)], "greedi", validation=DATA)


def test_soups_run_modules():
    with pytest.raises(MissingInput, match="Soups run the models: pass module="):
        alloykit.soup(states(), validation=DATA)


@pytest.mark.parametrize("form", ["states", "files"])
def test_soups_of_files_come_back_as_state_dicts_of_their_dtype(form, tmp_path):
    nets = {f"m{seed}": norm_net(seed).half() for seed in range(3)}
    models = {name: net.state_dict() for name, net in nets.items()}
    if form == "files":
        models = {
            name: alloykit.save_checkpoint(state, tmp_path / f"{name}.safetensors")
            for name, state in models.items()
        }
    result = alloykit.soup(models, "uniform", validation=DATA, module=norm_net(5))
    assert {tensor.dtype for tensor in result.model.values()} == {torch.float16, torch.int64}
    net = norm_net(5)
    net.load_state_dict(result.model)
    hidden = net[0](INPUTS).detach()
    torch.testing.assert_close(net[1].running_mean, hidden.mean(0), rtol=1e-2, atol=1e-2)


def test_soups_by_a_function_of_ones_own():
    def hits(outputs, targets):
        return (outputs.argmax(-1) == targets).double().mean().item()

    nets = [norm_net(seed) for seed in range(3)]
    own = alloykit.soup(nets, validation=DATA, measure=hits, higher_is_better=True)
    named = alloykit.soup(nets, validation=DATA, measure="accuracy")
    assert own.choice.weights == named.choice.weights
    assert own.choice.value == pytest.approx(named.choice.value)


def test_checkpoints_are_saved_whole_with_their_metadata(tmp_path):
    path = alloykit.save_checkpoint(norm_net(0), tmp_path / "a.safetensors", metadata={"run": "7"})
    assert alloykit.open_checkpoint(path).metadata["run"] == "7"
    with pytest.raises(OutputExists):
        alloykit.save_checkpoint(norm_net(1), path)
    alloykit.save_checkpoint(norm_net(1), path, overwrite=True)
    with pytest.raises(OutputExists, match="is one of the inputs"):
        alloykit.save_checkpoint(path, path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_list_is_saved_by_position(tmp_path):
    path = alloykit.save_checkpoint([np.ones(2), torch.zeros(1)], tmp_path / "list.safetensors")
    assert list(alloykit.open_checkpoint(path).specs()) == ["0", "1"]


def test_pickles_of_unknown_classes_are_opened_only_when_trusted(tmp_path):
    torch.save({"state_dict": states()[0], "odd": Odd()}, tmp_path / "a.ckpt")
    torch.save({"state_dict": states()[1], "odd": Odd()}, tmp_path / "b.ckpt")
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for verb in (alloykit.average, alloykit.inspect):
        with pytest.raises(CheckpointError, match="Odd"):
            verb(paths)
        assert verb(paths, trust_pickle=True)


class Odd:
    """Stands for what training scripts put into their checkpoints."""


def test_dtypes_that_cannot_be_averaged_in_are_refused():
    with pytest.raises(InvalidParameter, match="must be floating point or complex"):
        alloykit.average(states(), dtype=torch.int8)


def test_a_calibrated_vote_keeps_the_winner_and_mends_the_confidence():
    torch.manual_seed(0)
    members = [nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)]
    inputs = torch.randn(200, 2)
    data = (inputs, members[0](inputs).argmax(1))
    plain = alloykit.ensemble(members, "vote")
    mended = alloykit.ensemble(members, "calibrated", of="vote", validation=data)
    assert torch.equal(plain(inputs).argmax(1), mended(inputs).argmax(1))
    loss = [nn.functional.nll_loss(model(inputs), data[1]) for model in (plain, mended)]
    assert loss[1] < loss[0]
