"""A comparison from end to end: honest numbers, survival, resumption, a winner that is the row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import alloykit
from alloykit.comparison import trying
from alloykit.comparison.comparing import Comparison
from alloykit.errors import AlloyError, DataError, DataLeak, OutputExists, UnknownName
from alloykit.evaluation.metrics import METRICS
from study_files import blobs, small_net, trained

Data = tuple[np.ndarray, np.ndarray]


class Other(nn.Module):
    """Another architecture with the same output, which gives probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs).softmax(dim=1)


@pytest.fixture(scope="module")
def members() -> dict[str, nn.Module]:
    """Three fine-tunes of one start, and one model of another architecture."""
    start = trained(0)
    named = {f"tune{seed}": trained(seed, start) for seed in (1, 2, 3)}
    torch.manual_seed(5)
    return {**named, "other": Other().eval()}


@pytest.fixture(scope="module")
def found(members: dict[str, nn.Module]) -> Comparison:
    """One comparison of all of them."""
    return alloykit.compare(members, validation=blobs(200, 10), test=blobs(300, 11), resamples=200)


def compare(members: Any, **changes: Any) -> Comparison:
    given = {"validation": blobs(200, 10), "test": blobs(300, 11), "resamples": 100, **changes}
    return alloykit.compare(members, **given)


def test_every_registered_candidate_has_a_row(found: Comparison) -> None:
    without = ("distillation loss", "aggregator")
    every = [entry for entry in alloykit.methods() if entry["sort"] not in without]
    methods = {entry["name"] for entry in every} - {"uniform"}
    named = {row.candidate.partition(" ")[0] for row in found.rows}
    assert methods <= named
    assert len({row.candidate for row in found.rows}) == len(found.rows)
    assert [row.candidate for row in found.rows if row.status == "failed"] == []


def test_skipped_rows_say_why(found: Comparison) -> None:
    skipped = {row.candidate: row.reason for row in found.rows if row.status == "skipped"}
    assert "base" in skipped["interpolate"]
    assert "ordered" in skipped["exponential"]


def test_members_rows_are_their_own_accuracy(
    found: Comparison, members: dict[str, nn.Module]
) -> None:
    inputs, labels = blobs(300, 11)
    for name, module in members.items():
        predicted = module(torch.tensor(inputs)).argmax(dim=1).numpy()
        row = found[name].row
        assert row.test["accuracy"] == pytest.approx((predicted == labels).mean())
        low, high = row.intervals["accuracy"].low, row.intervals["accuracy"].high
        assert low <= row.test["accuracy"] <= high


def test_average_of_probabilities_is_what_it_says(
    found: Comparison, members: dict[str, nn.Module]
) -> None:
    inputs, labels = blobs(300, 11)
    given = torch.tensor(inputs)
    with torch.no_grad():
        each = [
            member(given) if name == "other" else member(given).softmax(dim=1)
            for name, member in members.items()
        ]
    mean = torch.stack(each).mean(dim=0)
    row = found["average (probabilities)"].row
    assert row.test["accuracy"] == pytest.approx((mean.argmax(1).numpy() == labels).mean())
    expected = -mean[range(300), labels].log().mean().item()
    assert row.test["log_loss"] == pytest.approx(expected, rel=1e-5)


def test_improvement_is_the_paired_difference_with_the_best_single_member(
    found: Comparison,
) -> None:
    best = found[found.best_single].row
    assert best.improvement is None
    assert best.validation["accuracy"] == max(
        row.validation["accuracy"] for row in found.rows if row.family == "member"
    )
    row = found["linear of tune1, tune2, tune3"].row
    gain = row.test["accuracy"] - best.test["accuracy"]
    assert row.improvement is not None
    assert row.improvement.value == pytest.approx(gain, abs=1e-6)
    assert row.improvement.low <= gain <= row.improvement.high


@pytest.mark.parametrize(
    "candidate",
    ["tune1", "average (probabilities)", "per_class", "vote", "greedy soup of tune1, tune2, tune3",
     "linear of tune1, tune2, tune3"],
)  # fmt: skip
def test_the_model_of_a_row_scores_what_the_row_says(found: Comparison, candidate: str) -> None:
    inputs, labels = blobs(300, 11)
    with torch.no_grad():
        outputs = found[candidate].model()(torch.tensor(inputs))
    accuracy = (outputs.argmax(dim=1).numpy() == labels).mean()
    assert accuracy == pytest.approx(found[candidate].row.test["accuracy"])


def test_saved_weights_load_into_the_architecture(found: Comparison, tmp_path: Path) -> None:
    path = found["linear of tune1, tune2, tune3"].save(tmp_path / "merged.safetensors")
    net, model = small_net(), found["linear of tune1, tune2, tune3"].model()
    net.load_state_dict(torch.load(path) if path.suffix == ".pt" else _loaded(path))
    inputs = torch.tensor(blobs(50, 12)[0])
    torch.testing.assert_close(net(inputs), model(inputs))
    with pytest.raises(OutputExists):
        found["linear of tune1, tune2, tune3"].save(path)
    with pytest.raises(AlloyError, match=r"merged\.safetensors"):
        found["linear of tune1, tune2, tune3"].save(tmp_path / "merged.pt2")


def _loaded(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_fitted_rules_are_scored_cross_fitted_on_validation() -> None:
    """Labels without any relation to the inputs: whatever was fitted cannot really be better."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    noise = {f"n{seed}": small_net().eval() for seed in range(4)}
    validation = blobs(120, 20)[0], random.integers(0, 3, 120)
    test = blobs(2000, 21)[0], random.integers(0, 3, 2000)
    found = alloykit.compare(
        noise, validation=validation, test=test, resamples=100, candidates=["per_class"]
    )
    row = found["per_class"].row
    chance = np.log(3)
    assert row.validation["log_loss"] > chance, "the fit's own examples would look better"
    assert any("cross-fitted" in note for note in row.notes)


def test_test_labels_choose_nothing(members: dict[str, nn.Module]) -> None:
    test_inputs, labels = blobs(300, 11)
    honest = compare(members, candidates=["average", "linear", "greedy"])
    shuffled = np.random.default_rng(1).permutation(labels)
    other = compare(
        members, test=(test_inputs, shuffled), candidates=["average", "linear", "greedy"]
    )
    assert honest.recommendation.candidate == other.recommendation.candidate
    assert honest.best_single == other.best_single
    for one, two in zip(honest.rows, other.rows, strict=True):
        assert one.validation == two.validation
        assert one.recipe == two.recipe


def test_a_candidate_that_fails_costs_only_its_own_row(
    members: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trying._ensemble

    def sometimes(candidate: Any, setting: Any) -> Any:
        if candidate.method == "vote":
            raise RuntimeError("planted")
        return real(candidate, setting)

    monkeypatch.setattr(trying, "_ensemble", sometimes)
    found = compare(members, candidates=["vote", "average"])
    failed = [row for row in found.rows if row.status == "failed"]
    assert {row.candidate for row in failed} == {"vote", "vote (accuracy)"}
    assert all("RuntimeError: planted" in row.reason for row in failed)
    assert found["average (logits)"].row.status == "done"
    assert any("2 candidates failed" in warning for warning in found.warnings)


def test_an_interrupted_comparison_goes_on_where_it_stopped(
    members: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(members, candidates=["average", "vote", "linear"])
    tried: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        if what == "vote":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(members, candidates=["average", "vote", "linear"], output=tmp_path, progress=stop)
    kept = [json.loads(line)["candidate"] for line in _lines(tmp_path)]
    assert "average (logits)" in kept
    assert "vote" not in kept
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"candidate": "torn')

    real = trying.try_candidate

    def recorded(candidate: Any, setting: Any) -> Any:
        tried.append(candidate.name)
        return real(candidate, setting)

    monkeypatch.setattr("alloykit.comparison.comparing.try_candidate", recorded)
    resumed = compare(members, candidates=["average", "vote", "linear"], output=tmp_path)
    assert not set(tried) & set(kept)
    assert [row.candidate for row in resumed.rows] == [row.candidate for row in whole.rows]
    for one, two in zip(resumed.rows, whole.rows, strict=True):
        assert (one.test, one.validation, one.improvement) == (
            two.test,
            two.validation,
            two.improvement,
        )
    assert (tmp_path / "report.html").exists()


def _lines(folder: Path) -> Iterator[str]:
    yield from (folder / "rows.jsonl").read_text().splitlines()


def test_a_folder_with_another_comparison_is_refused(
    members: dict[str, nn.Module], tmp_path: Path
) -> None:
    compare(members, candidates=["average"], output=tmp_path)
    with pytest.raises(OutputExists, match="seed"):
        compare(members, candidates=["average"], output=tmp_path, seed=1)
    again = compare(members, candidates=["average"], output=tmp_path, seed=1, overwrite=True)
    assert again["average (logits)"].row.status == "done"


def test_same_seed_same_rows(members: dict[str, nn.Module]) -> None:
    one, two = (compare(members, candidates=["average", "greedy"]) for _ in range(2))
    for first, second in zip(one.rows, two.rows, strict=True):
        assert first.intervals == second.intervals
        assert first.improvement == second.improvement


def test_members_are_not_changed(members: dict[str, nn.Module]) -> None:
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in members.items()}
    compare(members)
    for name, member in members.items():
        for key, tensor in member.state_dict().items():
            assert torch.equal(tensor, before[name][key]), f"{name} {key}"


def test_forms_of_data_give_the_same_rows(members: dict[str, nn.Module]) -> None:
    from torch.utils.data import DataLoader, TensorDataset

    inputs, labels = blobs(300, 11)
    dataset = TensorDataset(torch.tensor(inputs), torch.tensor(labels))
    forms = [(inputs, labels), dataset, DataLoader(dataset, batch_size=64, shuffle=True)]
    rows = [compare(members, test=form, candidates=["average"]).rows for form in forms]
    for other in rows[1:]:
        assert [row.test for row in other] == [row.test for row in rows[0]]


def test_regression_compares_values() -> None:
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    values = inputs @ np.array([[1.0], [2.0]], np.float32)
    members = {}
    for number in range(3):
        net = nn.Linear(2, 1)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[1.0, 2.0]]) + 0.3 * torch.randn(1, 2))
            net.bias.zero_()
        members[f"m{number}"] = net
    found = alloykit.compare(
        members, validation=(inputs[:200], values[:200]), test=(inputs[200:], values[200:]),
        task="regression", resamples=100,
    )  # fmt: skip
    assert found.setting.metric.name == "rmse"
    assert "Not made" not in found.recommendation.reason
    fitted = found["weighted (mse)"].row if "weighted (mse)" in _done(found) else None
    assert fitted is None or fitted.test["mse"] <= found[found.best_single].row.test["mse"] * 1.05
    mean = found["average"].row if "average" in _done(found) else found["average (values)"].row
    predicted = sum(m(torch.tensor(inputs[200:])).detach().numpy() for m in members.values()) / 3
    assert mean.test["mse"] == pytest.approx(((predicted - values[200:]) ** 2).mean(), rel=1e-4)


def _done(found: Comparison) -> set[str]:
    return {row.candidate for row in found.rows if row.status == "done"}


def test_own_metric_with_its_direction(members: dict[str, nn.Module]) -> None:
    def wrong(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float((outputs.argmax(dim=1) != targets).float().mean())

    found = compare(members, measure=wrong, higher_is_better=False, candidates=["average"])
    row = found["average (logits)"].row
    assert row.test["wrong"] == pytest.approx(1 - row.test["accuracy"])
    gain = found[found.best_single].row.test["wrong"] - row.test["wrong"]
    assert row.improvement is not None
    assert row.improvement.value == pytest.approx(gain)


def test_overlap_is_refused_dropped_or_said(members: dict[str, nn.Module]) -> None:
    inputs, labels = blobs(300, 11)
    leaky = (
        np.concatenate([inputs[:30], blobs(100, 10)[0]]),
        np.concatenate([labels[:30], blobs(100, 10)[1]]),
    )
    with pytest.raises(DataLeak, match="30 of 300"):
        compare(members, validation=leaky)
    dropped = compare(members, validation=leaky, on_overlap="drop", candidates=["average"])
    assert len(dropped.setting.validation) == 100
    allowed = compare(members, validation=leaky, on_overlap="allow", candidates=["average"])
    assert any("Overlap" in warning for warning in allowed.warnings)


def test_unknown_candidates_and_rows_are_named(members: dict[str, nn.Module]) -> None:
    with pytest.raises(UnknownName, match="average"):
        compare(members, candidates=["avrage"])
    with pytest.raises(UnknownName, match="No finished candidate"):
        compare(members, candidates=["average"])["interpolate"]


def test_members_without_a_common_output_are_refused() -> None:
    nets = {"three": small_net(), "four": nn.Linear(2, 4)}
    with pytest.raises(DataError, match=r"four   \[4\]"):
        compare(nets)


def test_every_metric_of_the_task_is_reported(found: Comparison) -> None:
    shown = set(found["vote"].row.test)
    assert shown == {name for name, m in METRICS.items() if "classification" in m.tasks}


def test_the_callers_modules_keep_their_flags(members: dict[str, nn.Module]) -> None:
    trainable = {name: small_net() for name in ("a", "b")}
    compare(trainable, candidates=["average", "linear", "learned"])
    for net in trainable.values():
        assert net.training
        assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_base_serves_the_members_that_have_its_tensors(members: dict[str, nn.Module]) -> None:
    found = compare(members, base=trained(0), candidates=["interpolate", "interpolation"])
    rows = {row.candidate: row for row in found.rows}
    assert rows["interpolate (base to tune1)"].status == "done"
    sweep = rows["interpolation soup (base to tune1)"]
    trials = sweep.recipe["chosen_by"]["trials"]
    assert max(t["accuracy"] for t in trials) == pytest.approx(sweep.validation["accuracy"])
    other = rows["interpolate (base to other)"]
    assert (other.status, "tensors of the base" in other.reason) == ("skipped", True)


def test_ordered_members_are_weighed_by_recency(members: dict[str, nn.Module]) -> None:
    three = {name: members[name] for name in ("tune3", "tune1", "tune2")}
    found = compare(three, ordered=True, candidates=["exponential"])
    merged = found["exponential"].model().state_dict()
    weights = np.array([0.81, 0.9, 1.0]) / 2.71
    for name, tensor in merged.items():
        expected = sum(
            w * m.state_dict()[name] for w, m in zip(weights, three.values(), strict=True)
        )
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_training_inputs_reestimate_where_they_are_given() -> None:
    torch.manual_seed(0)
    nets = {name: Other() for name in "ab"}
    found = compare(nets, train=blobs(64, 33), candidates=["linear"])
    row = found["linear"].row
    assert row.recipe["batch_norm"] == "train"
    merged = found["linear"].model().state_dict()
    first = (
        merged["net.0.weight"] @ torch.tensor(blobs(64, 33)[0]).T + merged["net.0.bias"][:, None]
    )
    torch.testing.assert_close(merged["net.1.running_mean"], first.mean(dim=1))


def test_a_saved_merge_says_how_it_was_made(found: Comparison, tmp_path: Path) -> None:
    from safetensors import safe_open

    name = "linear (by accuracy) of tune1, tune2, tune3"
    path = found[name].save(tmp_path / "merged.safetensors")
    with safe_open(path, "pt") as file:
        said = {key: json.loads(value) for key, value in file.metadata().items() if key != "format"}
    scores = [found[f"tune{n}"].row.validation["accuracy"] for n in (1, 2, 3)]
    assert said["weights"] == pytest.approx(
        {f"tune{n}": s / sum(scores) for n, s in zip((1, 2, 3), scores, strict=True)}
    )
    assert said["inputs"] == {m.name: m.digest for m in found.setting.members[:3]}
    assert said["method"] == "linear"


def test_a_winner_is_never_written_over_a_member(tmp_path: Path) -> None:
    start = trained(0)
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"m{seed}.safetensors")
        alloykit.save_checkpoint(trained(seed, start), paths[-1])
    before = paths[0].read_bytes()
    found = compare(paths, architecture=small_net, candidates=["linear"])
    with pytest.raises(OutputExists, match="input"):
        found["linear"].save(paths[0], overwrite=True)
    assert paths[0].read_bytes() == before


def test_a_member_whose_code_changed_makes_the_rows_stale(tmp_path: Path) -> None:
    nets = {name: trained(seed) for name, seed in (("a", 1), ("b", 2))}
    compare(nets, candidates=["average"], output=tmp_path)
    nets["a"][1].negative_slope = 1.5
    with pytest.raises(OutputExists, match=r"a had accuracy .* its code has changed"):
        compare(nets, candidates=["average"], output=tmp_path)
    fresh = compare(nets, candidates=["average"])
    again = compare(nets, candidates=["average"], output=tmp_path, overwrite=True)
    assert [row.test for row in again.rows] == [row.test for row in fresh.rows]


@pytest.mark.parametrize("name", ["rows.jsonl", "report.html"])
def test_other_peoples_files_are_kept(
    members: dict[str, nn.Module], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputExists, match=name):
        compare(members, candidates=["average"], output=tmp_path)
    assert (tmp_path / name).read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_damaged_rows_are_refused_and_can_be_replaced(
    members: dict[str, nn.Module], tmp_path: Path
) -> None:
    compare(members, candidates=["average"], output=tmp_path)
    for name in ("fingerprint.json", "rows.jsonl"):
        (tmp_path / name).write_text("{\n")
        with pytest.raises(OutputExists, match="cannot be read"):
            compare(members, candidates=["average"], output=tmp_path)
        compare(members, candidates=["average"], output=tmp_path, overwrite=True)


def test_members_cannot_be_named_like_candidates(members: dict[str, nn.Module]) -> None:
    with pytest.raises(AlloyError, match="names of candidates: vote"):
        compare({"vote": members["tune1"], "b": members["tune2"]})


def test_copies_and_few_examples_are_warned_of(members: dict[str, nn.Module]) -> None:
    copies = {"a": members["tune1"], "b": members["tune1"], "c": members["tune2"]}
    found = compare(copies, validation=blobs(50, 10), candidates=["average"])
    assert "a, b are the same model." in found.warnings
    assert any("50 validation examples are few" in warning for warning in found.warnings)


def test_repairs_of_single_members_are_candidates_of_their_own(found: Comparison) -> None:
    """What re-estimation or recalibration alone gains must not be credited to combining."""
    assert found["other (BatchNorm re-estimated)"].row.members == ("other",)
    alone = found["per_class (tune1 alone)"].row
    assert alone.members == ("tune1",)
    assert alone.costs is not None
    assert alone.costs.forward_passes == 1


def test_members_of_one_and_of_two_outputs_are_compared() -> None:
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    labels = (inputs[:, 0] > 0).astype(np.int64)
    nets = {"logit": nn.Linear(2, 1), "squeezed": nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)),
            "two": nn.Linear(2, 2)}  # fmt: skip
    found = alloykit.compare(
        nets, validation=(inputs[:150], labels[:150]), test=(inputs[150:], labels[150:]),
        resamples=100, candidates=["average", "vote"],
    )  # fmt: skip
    assert all(row.status == "done" for row in found.rows)
    logit = nets["logit"](torch.tensor(inputs[150:])).squeeze(1) > 0
    expected = float((logit.numpy() == labels[150:]).mean())
    assert found["logit"].row.test["accuracy"] == pytest.approx(expected)


def test_a_member_that_cannot_run_is_named(members: dict[str, nn.Module]) -> None:
    with pytest.raises(DataError, match="Member broken cannot be run on the validation examples"):
        compare({"good": members["tune1"], "broken": nn.Linear(5, 3)})


def test_the_best_single_member_follows_the_metrics_direction(
    members: dict[str, nn.Module],
) -> None:
    found = compare(members, measure="log_loss", candidates=["average"])
    losses = {n: found[n].row.validation["log_loss"] for n in members}
    assert found.best_single == min(losses, key=losses.__getitem__)
    assert len(set(losses.values())) == len(losses)


def test_another_order_or_batch_size_is_another_comparison(
    members: dict[str, nn.Module], tmp_path: Path
) -> None:
    compare(members, candidates=["average"], output=tmp_path)
    turned = dict(reversed(members.items()))
    with pytest.raises(OutputExists, match="members"):
        compare(turned, candidates=["average"], output=tmp_path)
    with pytest.raises(OutputExists, match="batch_norm_batches"):
        compare(members, candidates=["average"], output=tmp_path, batch_size=20)


def test_merged_single_logits_stay_logits() -> None:
    inputs = np.linspace(-3, 3, 200, dtype=np.float32).reshape(-1, 1)
    labels = np.random.default_rng(0).integers(0, 2, 200)
    nets = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
    with torch.no_grad():
        for net, slope in zip(nets.values(), (4.0, -4.0), strict=True):
            net.weight.fill_(slope)
            net.bias.fill_(0.4)
    found = alloykit.compare(
        nets, validation=(inputs, labels), test=(inputs + 0.01, labels), resamples=100,
        candidates=["linear"],
    )  # fmt: skip
    # The merge says 0.4 for every example: as a logit that is class 1.
    assert found["linear"].row.test["accuracy"] == pytest.approx((labels == 1).mean())


def test_what_was_trained_on_since_is_not_saved(tmp_path: Path) -> None:
    nets = {"a": trained(1), "b": trained(2)}
    found = compare(nets, candidates=["linear"])
    with torch.no_grad():
        nets["a"][0].weight.add_(1.0)
    with pytest.raises(AlloyError, match="a changed after the comparison"):
        found["linear"].save(tmp_path / "x.safetensors")


def test_integers_that_differ_cost_the_merges_only(members: dict[str, nn.Module]) -> None:
    nets = {"a": trained(1), "b": trained(2)}
    for number, net in enumerate(nets.values()):
        net.register_buffer("version", torch.tensor(number))
    found = compare(nets, candidates=["average", "linear"])
    assert found["average (logits)"].row.status == "done"
    assert {r.candidate for r in found.rows if r.status == "failed"} == {
        "linear", "linear (by accuracy)",
    }  # fmt: skip
    assert any("version" in warning for warning in found.warnings)


def test_float64_data_can_be_compared_and_saved(tmp_path: Path) -> None:
    inputs, labels = blobs(200, 10)
    found = compare(
        {"a": trained(1), "b": trained(2)}, candidates=["average"],
        validation=(inputs.astype(np.float64), labels),
    )  # fmt: skip
    path = found["average (logits)"].save(tmp_path / "both.pt2")
    assert alloykit.load_exported(path)(torch.tensor(inputs)).shape == (200, 3)
