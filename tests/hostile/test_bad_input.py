"""Every bad input of the command line: one clear error, the promised exit code, nothing written.

The table in docs/errors.md is what this test saw; UPDATE_TABLES=1 rewrites it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import alloykit
from command_line import run
from study_files import blobs, small_net, write_study

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
HEAD = """# What bad input gets

One error that lists everything wrong and says how to go on, no traceback (`--debug` shows it), and
nothing written. Exit codes: 2 usage, 3 data, 4 checkpoint, 5 environment, 1 anything else. This
page is what a test saw (`tests/hostile/test_bad_input.py`); the test fails when it is stale.
"""


@dataclass(frozen=True)
class Case:
    """A bad input: its name, what to type in a prepared folder, code and words to expect."""

    name: str
    command: Callable[[Path], list[Any]]
    code: int
    words: tuple[str, ...]


def _average(*extra: str, third: Callable[[dict[str, torch.Tensor]], object] | None = None) -> Any:
    """The command that averages two good models, and a third one made by ``third``."""

    def command(folder: Path) -> list[Any]:
        models: list[Any] = [folder / "a.safetensors", folder / "b.safetensors"]
        if third is not None:
            state = load_file(models[0])
            changed = third(state)
            save_file(changed if isinstance(changed, dict) else state, folder / "c.safetensors")
            models.append(folder / "c.safetensors")
        return ["average", *models, "-o", folder / "out.safetensors", *extra]

    return command


def _compare(**changes: Any) -> Any:
    def command(folder: Path) -> list[Any]:
        return ["compare", write_study(folder, **changes)]

    return command


def _without(name: str) -> Any:
    return lambda state: {k: v for k, v in state.items() if k != name}


def _with(**changes: Any) -> Any:
    return lambda state: state | {k.replace("_", "."): v(state) for k, v in changes.items()}


def _pickle(folder: Path) -> list[Any]:
    class Payload:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {folder / 'ran'}",))

    torch.save({"w": torch.zeros(2), "extra": Payload()}, folder / "evil.pth")
    return [
        "average",
        folder / "evil.pth",
        folder / "a.safetensors",
        "-o",
        folder / "out.safetensors",
    ]


def _truncated(folder: Path) -> list[Any]:
    whole = (folder / "a.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(whole[:-10])
    return [
        "average",
        folder / "a.safetensors",
        folder / "short.safetensors",
        "-o",
        folder / "out.safetensors",
    ]


def _existing(folder: Path) -> list[Any]:
    (folder / "out.safetensors").write_bytes(b"precious")
    return [
        "average",
        folder / "a.safetensors",
        folder / "b.safetensors",
        "-o",
        folder / "out.safetensors",
    ]


def _over_input(folder: Path) -> list[Any]:
    models = [folder / "a.safetensors", folder / "b.safetensors"]
    return ["average", *models, "-o", folder / "a.safetensors", "--overwrite"]


def _one(folder: Path) -> list[Any]:
    return ["average", folder / "a.safetensors", "-o", folder / "out.safetensors"]


def _training(command: str, *extra: str, **changes: Any) -> Any:
    """``alloykit fuse`` or ``distill`` on a study that has data to train on."""

    def build(folder: Path) -> list[Any]:
        inputs, labels = blobs(60, 12)
        np.savez(folder / "train.npz", x=inputs, y=labels)
        data = {name: {"npz": f"{name}.npz"} for name in ("train", "validation", "test")}
        return [command, write_study(folder, data=data, **changes), *extra]

    return build


def _small_fusion_split(folder: Path) -> list[Any]:
    inputs, labels = blobs(12, 13)
    return ["fuse", *_split(folder, inputs, labels)[1:]]


def _split(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> list[Any]:
    study = write_study(folder)
    np.savez(folder / "validation.npz", x=inputs, y=labels)
    return ["compare", study]


def _empty(folder: Path) -> list[Any]:
    return _split(folder, np.zeros((0, 2), np.float32), np.zeros(0, np.int64))


def _overlapping(folder: Path) -> list[Any]:
    inputs, labels = blobs(300, 11)
    return _split(folder, inputs[:40], labels[:40])


def _out_of_range(folder: Path) -> list[Any]:
    inputs, labels = blobs(50, 10)
    labels[:3] = (3, 7, -1)
    return _split(folder, inputs, labels)


def _too_high(folder: Path) -> list[Any]:
    inputs, labels = blobs(50, 10)
    labels[0] = 9
    return _split(folder, inputs, labels)


def _other_outputs(folder: Path) -> list[Any]:
    study = write_study(
        folder,
        members=[
            {"checkpoint": "tune1.safetensors"},
            {"checkpoint": "four.safetensors", "architecture": "nets:four_classes"},
        ],
    )
    four = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.0), nn.Linear(8, 4))
    alloykit.save_checkpoint(four, folder / "four.safetensors")
    return ["compare", study]


def _typos(folder: Path) -> list[Any]:
    member = {"chekpoint": "tune1.safetensors"}
    return ["compare", write_study(folder, members=[member, member], metrik="accuracy", seed=-1)]


def _aggregate(*extra: str, clients: int = 3, bad: bool = False) -> Any:
    """The command that aggregates clients of one model; two of them can be bad ones."""

    def command(folder: Path) -> list[Any]:
        for number in range(clients):
            state = load_file(folder / "a.safetensors")
            if bad and number == 0:
                state["0.weight"] *= float("nan")
            if bad and number > 0:
                state["0.bias"] = torch.zeros(9)
            save_file(state, folder / f"client{number}.safetensors")
        files = [folder / f"client{number}.safetensors" for number in range(clients)]
        return ["aggregate", *files, "-o", folder / "out.safetensors", *extra]

    return command


def _aggregate_from_a(*extra: str, **options: Any) -> Any:
    def command(folder: Path) -> list[Any]:
        return [*_aggregate(*extra, **options)(folder), "--base", folder / "a.safetensors"]

    return command


CASES = [
    Case("no models", lambda f: ["average", "-o", f / "out.safetensors"], 2, ("Missing argument", "models")),
    Case("one model", _one, 2, ("at least two", "one was given")),
    Case("a study with one model", _compare(members=[{"checkpoint": "tune1.safetensors"}]), 2,
         ("at least two", "1 was given")),
    Case("a study with no models", _compare(members=[]), 2, ("at least two", "none were given")),
    Case("more weights than models", _average("--weights", "1,2,3"), 2, ("3 weights for 2 models",)),
    Case("a negative weight", _average("--weights", "2,-1"), 2, ("weight 2 is negative: -1",)),
    Case("a weight that is NaN", _average("--weights", "nan,1"), 2, ("weight 1 is nan",)),
    Case("weights that are all zero", _average("--weights", "0,0"), 2, ("all weights are zero",)),
    Case("weights that do not sum to one, strictly", _average("--weights", "2,1", "--strict"), 2,
         ("they sum to 3",)),
    Case("weights that are no numbers", _average("--weights", "a,b"), 2, ("2,1,1", "a,b")),
    Case("a recency outside [0, 1]", _average("--recency", "1.5"), 2, ("recency", "[0, 1]", "1.5")),
    Case("NaN and Inf inside tensors",
         _average(third=_with(**{"0_weight": lambda s: s["0.weight"] * float("nan"),
                                 "2_bias": lambda s: s["2.bias"] + float("inf")})),
         4, ("0.weight   c: 16 NaN", "2.bias   c: 3 Inf")),
    Case("a missing tensor", _average(third=_without("0.bias")), 4, ("0.bias", "c")),
    Case("an extra tensor", _average(third=_with(**{"9_bias": lambda s: torch.zeros(2)})), 4,
         ("9.bias", "c")),
    Case("a misshapen tensor", _average(third=_with(**{"0_bias": lambda s: torch.zeros(9)})), 4,
         ("0.bias", "[8]", "[9]")),
    Case("integers in place of numbers",
         _average(third=_with(**{"0_bias": lambda s: torch.zeros(8, dtype=torch.int64)})), 4,
         ("0.bias",)),
    Case("a pickle", _pickle, 4, ("evil.pth was not loaded", "system", "--trust-pickle")),
    Case("a truncated file", _truncated, 4, ("short.safetensors",)),
    Case("a missing file", lambda f: ["average", f / "a.safetensors", f / "bb.safetensors", "-o",
         f / "out.safetensors"], 4, ("bb.safetensors", "Did you mean")),
    Case("an output that exists", _existing, 4, ("out.safetensors", "--overwrite")),
    Case("an output that is an input", _over_input, 4, ("a.safetensors", "input")),
    Case("an empty split", _empty, 3, ("validation", "no examples")),
    Case("overlapping splits", _overlapping, 3, ("share 40 of",)),
    Case("labels below the range", _out_of_range, 3, ("-1",)),
    Case("labels above the models' classes", _too_high, 3, ("9", "3 classes")),
    Case("members whose outputs differ in shape", _other_outputs, 3, ("[3]", "[4]", "four")),
    Case("a metric that does not fit the task", _compare(metric="rmse"), 2, ("rmse", "classification")),
    Case("a metric that does not exist", _compare(metric="acuracy"), 2, ("acuracy", "accuracy")),
    Case("a candidate that does not exist", _compare(candidates=["liner"]), 2, ("liner", "linear")),
    Case("misspelt keys and a bad number", _typos, 2,
         ("metrik", "metric", "members.0.chekpoint", "checkpoint", "seed")),
    Case("a study that is not there", lambda f: ["compare", f / "none.yaml"], 2, ("none.yaml",)),
    Case("an architecture that does not fit its file",
         _compare(arguments={"width": 4}), 4, ("0.weight", "[4, 2]", "[8, 2]")),
    Case("a temperature of zero", _training("distill", "--temperature", "0"), 2,
         ("temperature", "above 0")),
    Case("an alpha outside [0, 1]", _training("distill", "--alpha", "1.5"), 2, ("alpha", "1.5")),
    Case("features without layers", _training("distill", "--loss", "hint"), 2, ("layers",)),
    Case("layers that do not exist",
         _training("distill", "--teacher", "tune1", "--loss", "hint", "-p", "layers=['0', fc]"), 2,
         ("'fc'", "2: Linear")),
    Case("training keys that are misspelt or out of range",
         _training("distill", training={"epoch": 3, "batch_size": 0}), 2,
         ("training.epoch", "epochs", "training.batch_size")),
    Case("a fusion split too small", _small_fusion_split, 3, ("12 examples, and 20",)),
    Case("a fusion head that does not exist", _training("fuse", "--head", "atention"), 2,
         ("attention",)),
    Case("too few clients for Krum", _aggregate("--method", "krum"), 2,
         ("at least 5 clients (2 · 1 + 3)", "3 count", "min_clients=5")),
    Case("more malicious clients than an aggregator can bear",
         _aggregate("--method", "bulyan", "--num-malicious", "2", clients=7), 2,
         ("at least 11 clients (4 · 2 + 3)", "7 count", "num_malicious=1")),
    Case("no client that can be used", _aggregate_from_a(bad=True), 2,
         ("0 updates of at least 1 can be used", "client0", "0.weight holds 16 NaN", "client2", "0.bias is [9]")),
    Case("a client that ends the round", _aggregate_from_a("--on-bad", "error", bad=True), 3,
         ("the update of client1", "0.bias is [9], the server's [8]")),
    Case("more numbers of examples than clients", _aggregate("--num-examples", "1,2,3,4"), 2,
         ("4 numbers for 3 updates",)),
    Case("an aggregator that does not exist", _aggregate("--method", "fedavgg"), 2,
         ("fedavgg", "Did you mean 'fedavg'", "every merge method")),
    Case("an aggregator without the server's model", _aggregate("--method", "fedadam"), 2,
         ("fedadam starts from the server's model", "--base FILE")),
    Case("names to keep that match nothing", _aggregate_from_a("--keep", "bn.*"), 2,
         ("'bn.*'", "4 tensors", "0.bias")),
    Case("an architecture that cannot be imported", _compare(architecture="nowhere:net"), 3,
         ("nowhere",)),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two good models."""
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        alloykit.save_checkpoint(small_net(), tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gets_one_clear_error(
    case: Case, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = case.command(folder)
    before = _contents(folder)
    ended = run(capsys, command)
    assert ended.code == case.code, ended.err
    for word in case.words:
        assert word in ended.err
    assert "Traceback" not in ended.err
    assert "not foreseen" not in ended.err
    assert _contents(folder) == before, "something was written"
    _record(case, ended.err, folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def _record(case: Case, said: str, folder: Path) -> None:
    """Compare the case's section of the page with what was said, or rewrite it when asked."""
    text = said.replace(f"{folder}/", "").replace(str(folder), "FOLDER").strip()
    section = f"## {case.name}\n\nExit code {case.code}.\n\n```text\n{text}\n```\n"
    if os.environ.get("UPDATE_TABLES"):
        sections = _sections() | {case.name: section}
        names = [known.name for known in CASES if known.name in sections]
        PAGE.write_text(HEAD + "\n" + "\n".join(sections[name] for name in names))
    assert _sections().get(case.name) == section, "stale: UPDATE_TABLES=1 rewrites docs/errors.md"


def _sections() -> dict[str, str]:
    if not PAGE.exists():
        return {}
    parts = re.split(r"^(?=## )", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0][3:]: part.rstrip() + "\n" for part in parts}


def test_the_page_has_no_other_cases() -> None:
    assert list(_sections()) == [case.name for case in CASES]
