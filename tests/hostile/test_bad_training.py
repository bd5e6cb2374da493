"""What careless and malicious callers hand to fuse, distill, retrain and adapted: one clear error.

Nothing is written, members and student keep their bytes, and random numbers go on as they would.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bad_models import ADAPTED, BIN, MODELS, STORES
from bad_training import (
    COMPARED,
    DATA,
    INF,
    NAN,
    NUMBERS,
    ONCE,
    PARTS,
    Case,
    Given,
    X,
    Y,
    bytes_of,
    contents,
    net,
)

import alloykit
from alloykit.errors import AlloyError
from command_line import run
from study_files import blobs, write_study

CASES = [*COMPARED, *NUMBERS, *DATA, *MODELS, *ADAPTED, *STORES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gets_one_clear_error(case: Case, tmp_path: Path) -> None:
    given = Given(tmp_path)
    own = (given.student, *given.members.values())
    weights = bytes_of(*own)
    given.before = contents(tmp_path)
    state = torch.get_rng_state()
    with pytest.raises(AlloyError) as caught:
        case.call(given)
    error = caught.value
    assert type(error).__name__ == case.error, error
    assert error.exit_code in (2, 3, 4)
    for word in case.words:
        assert word in str(error)
    assert len(str(error)) < 1500
    assert contents(tmp_path) == given.before, "something was written"
    assert bytes_of(*own) == weights
    assert torch.equal(torch.get_rng_state(), state)


def test_names_are_told_apart() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 60


def test_a_link_in_the_place_of_outputs_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / BIN).symlink_to(tmp_path / "precious")
    with pytest.raises(alloykit.errors.OutputExists, match="is a link"):
        Given(tmp_path).distill(stored=tmp_path / "store")
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("option", ["stored", "snapshot"])
def test_a_file_where_a_folder_is_needed(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(AlloyError, match="file"):
        Given(tmp_path).distill(**{option: tmp_path / "file"})
    assert contents(tmp_path) == {"file": b"precious"}


def test_a_student_may_be_its_own_teacher() -> None:
    model = net()
    before = bytes_of(model)
    alloykit.distill(model, model, train=(X, Y), training=ONCE)
    assert bytes_of(model) == before


def test_the_same_member_twice_is_one_column_twice() -> None:
    member = net()
    assert alloykit.fuse([member, member], "log_pool", validation=(X, Y)).report.check.examples


def test_rows_known_to_be_the_members_own_are_marked() -> None:
    members = {"a": net(seed=1), "b": net(seed=2)}
    with pytest.warns(UserWarning, match="leak: 30 of 60 validation examples"):
        fused = alloykit.fuse(members, "log_pool", validation=(X, Y), train={"a": PARTS["a"]})
    assert any("leak" in note for note in fused.report.notes)


def test_a_loss_of_nan_says_where_and_keeps_the_best_weights(tmp_path: Path) -> None:
    with pytest.raises(alloykit.errors.DataError, match=r"epoch \d of 9, step \d") as caught:
        Given(tmp_path).distill(training={"epochs": 9, "learning_rate": 1e30})
    state = caught.value.student.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


class Stop(Exception):
    """Raised by a callback of the user."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize(
    "call",
    [
        lambda g, stop: g.distill(
            progress=stop, training={"epochs": 10**9}, snapshot=g.folder / "s"
        ),
        lambda g, stop: g.distill(augment=stop, training={"epochs": 10**9}),
        lambda g, stop: g.fuse(progress=stop, finetune={"epochs": 10**9}),
        lambda g, stop: g.fuse(validation=None, train=PARTS, out_of_fold=stop),
        lambda g, stop: g.retrain(progress=stop, training={"epochs": 10**9}),
    ],
    ids=["distill", "distill augmented", "fuse", "out of fold", "retrain"],
)
def test_an_interruption_leaves_everything_as_it_was(call, kind, tmp_path: Path) -> None:
    given, calls = Given(tmp_path), []
    own = (given.student, *given.members.values())
    weights, state = bytes_of(*own), torch.get_rng_state()

    def stop(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise kind
        return arguments[0] if len(arguments) == 1 else net()

    with pytest.raises(kind):
        call(given, stop)
    assert bytes_of(*own) == weights
    assert torch.equal(torch.get_rng_state(), state)
    assert not [name for name in contents(tmp_path) if name.endswith(".tmp")]


def test_what_an_interruption_left_is_gone_on_from(tmp_path: Path) -> None:
    given, calls = Given(tmp_path), []
    options: Mapping[str, Any] = {"training": {"epochs": 4, "batch_size": 20}, "every": 0}

    def stop(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        given.distill(snapshot=tmp_path / "run", progress=stop, **options)
    resumed = given.distill(snapshot=tmp_path / "run", **options).student
    assert bytes_of(resumed) == bytes_of(given.distill(**options).student)


STUDY = {"data": {"validation": {"npz": "validation.npz"}, "test": {"npz": "test.npz"},
                  "train": {"npz": "train.npz"}}, "training": {"epochs": 1}}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    inputs, labels = blobs(60, 20)
    np.savez(folder / "train.npz", x=inputs, y=labels)
    return write_study(folder, **STUDY)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["fuse", "--head", "atention"], 2, ["attention"]),
        (["fuse", "--source", "output"], 2, ["'source'"]),
        (["fuse", "--context", "inputs"], 2, ["concat", "context"]),
        (["fuse", "-p", "hiden=[3]"], 2, ["hiden", "hidden"]),
        (["fuse", "-p", "hidden=[3"], 2, ["cannot be read"]),
        (["fuse", "-p", "hidden=!!python/object:os.system x"], 2, ["cannot be"]),
        (["fuse", "-p", "seed=5"], 2, ["seed"]),
        (["fuse", "-p", "members=5"], 2, ["members"]),
        (["fuse", "--seed", "-1"], 2, ["seed"]),
        (["fuse", "-o", "out.safetensors"], 2, [".pt2"]),
        (["fuse", "-o", "nowhere/out.pt2"], 4, ["nowhere"]),
        (["fuse", "--picture", "out.xyz"], 2, [".png", ".svg"]),
        (["distill", "--teacher", "avrage"], 2, ["average"]),
        (["distill", "--start", "blnk"], 2, ["blank"]),
        (["distill", "--temperature", "0"], 2, ["temperature", "above 0"]),
        (["distill", "--alpha", "nan"], 2, ["alpha", "[0, 1]"]),
        (["distill", "--keep", "²"], 2, ["keep"]),
        (["distill", "--loss", "hint"], 2, ["layers"]),
        (["distill", "-p", "temperature=1"], 2, ["temperature"]),
        (["distill", "-p", "accelerator=3"], 2, ["accelerator"]),
        (["distill", "-o", "tune1.safetensors", "--overwrite"], 4, ["input"]),
        (["distill", "--stored", "train.npz"], 4, ["train.npz", "folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_commands_say_what_is_wrong(
    command: list[str],
    code: int,
    words: list[str],
    study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _refused(study, command, code, words, capsys, monkeypatch)


def _student(architecture: str) -> dict[str, Any]:
    return {"student": {"architecture": architecture}}


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"training": {"epoch": 3}}, 2, ["training.epoch", "epochs"]),
        (
            {"training": {"epochs": 0, "batch_size": 0}},
            2,
            ["training.epochs", "training.batch_size"],
        ),
        ({"training": {"learning_rate": INF}}, 2, ["learning_rate", "inf"]),
        ({"training": "fast"}, 2, ["training"]),
        ({"student": "nets:small"}, 2, ["student"]),
        (_student("nowhere:net"), 3, ["nowhere"]),
        ({"student": {"architecture": "nets:small", "arguments": {"widht": 4}}}, 2, ["widht"]),
        (_student("nets:smal"), 3, ["smal"]),
        (_student("nets:nn"), 2, ["nets:nn", "builds no model"]),
        (_student("nets:four_classes"), 3, ["3", "4"]),
        ({"members": {"mean": [1, 2, 3]}}, 3, ["tune1", "[3]", "[2]"]),
        ({"members": {"std": [1, 0]}}, 2, ["tune1", "std[1]"]),
        ({"members": {"mean": NAN}}, 2, ["tune1", "mean"]),
        ({"members": {"size": 0}}, 2, ["tune1", "'size'"]),
        ({"members": {"classes": [0, 1, 7]}, "classes": 3}, 2, ["tune1", "7"]),
        ({"members": {"classes": [0, 1]}, "classes": 3}, 3, ["tune1", "2 classes"]),
        ({"members": {"men": 1}}, 2, ["men", "mean"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_study_keys_say_what_is_wrong(
    changes: dict[str, Any],
    code: int,
    words: list[str],
    study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = copy.deepcopy(yaml.safe_load(study.read_text()))
    changes = dict(changes)
    changed["members"][0].update(changes.pop("members", {}))
    other = study.with_name("other.yaml")
    other.write_text(yaml.safe_dump(changed | changes))
    _refused(other, ["distill"], code, words, capsys, monkeypatch)


def _refused(
    study: Path,
    command: list[str],
    code: int,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(study.parent)
    before = {n: b for n, b in contents(study.parent).items() if "__pycache__" not in n}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ended = run(capsys, [command[0], study.name, *command[1:]])
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert "not foreseen" not in ended.err
    for word in words:
        assert word in ended.err
    after = {n: b for n, b in contents(study.parent).items() if "__pycache__" not in n}
    assert after == before, "something was written"
