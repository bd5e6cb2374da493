from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import alloykit
from command_line import run
from study_files import NETS, blobs, small_net, trained


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two checkpoints, their data, and the code of their architecture, as the current folder."""
    (tmp_path / "nets.py").write_text(NETS)
    start = trained(0)
    for seed, name in enumerate("ab", start=1):
        alloykit.save_checkpoint(trained(seed, start), tmp_path / f"{name}.safetensors")
        inputs, labels = blobs(60, seed)
        np.savez(tmp_path / f"{name}.npz", x=inputs, y=labels)
    (tmp_path / "spec.yaml").write_text("npz: a.npz\nrows: ':30'\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARCHITECTURE = ["--architecture", "nets:small"]


def expected(name, kind, rows=60):
    net = small_net()
    net.load_state_dict(load_file(f"{name}.safetensors"))
    inputs, labels = blobs(60, {"a": 1, "b": 2}[name])
    return alloykit.stats(net, (inputs[:rows], labels[:rows]), kind)


def held(path):
    checkpoint = alloykit.open_checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.specs()}


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_one_model_gives_one_file(folder, capsys, kind):
    out = folder / "out.safetensors"
    done = run(
        capsys, ["stats", kind, "a.safetensors", *ARCHITECTURE, "--data", "a.npz", "-o", out]
    )
    assert done.code == 0, done.err
    torch.testing.assert_close(held(out), expected("a", kind))
    method = {"fisher": "fisher", "gram": "regmean"}[kind]
    assert f"alloykit merge {method} MODELS --stats {kind} {out} -o OUT" in " ".join(
        done.out.split()
    )


def test_several_models_give_a_folder_of_files_that_merge(folder, capsys):
    given = ["a.safetensors", "b.safetensors", *ARCHITECTURE, "--data", "a.npz", "--data", "b.npz"]
    done = run(capsys, ["stats", "gram", *given, "-o", "grams", "--json"])
    files = json.loads(done.out)["outputs"]
    assert files == ["grams/a.safetensors", "grams/b.safetensors"]
    torch.testing.assert_close(held(files[1]), expected("b", "gram"))
    done = run(capsys, ["stats", "gram", *given, "-o", "behind", "--through-merged", "--json"])
    behind = held(json.loads(done.out)["outputs"][1])
    torch.testing.assert_close(behind["0.weight"], expected("b", "gram")["0.weight"])
    merged = run(
        capsys,
        [
            "merge",
            "regmean",
            "a.safetensors",
            "b.safetensors",
            "--stats",
            "gram",
            *files,
            "-o",
            "m.safetensors",
        ],
    )
    assert merged.code == 0, merged.err
    direct = alloykit.merge(
        ["a.safetensors", "b.safetensors"],
        "regmean",
        stats={"gram": [expected("a", "gram"), expected("b", "gram")]},
    )
    torch.testing.assert_close(held("m.safetensors"), direct)


def test_data_said_once_is_for_all_models(folder, capsys):
    given = ["b.safetensors", "a.safetensors", *ARCHITECTURE, "--data", "a.npz"]
    done = run(capsys, ["stats", "gram", *given, "-o", "grams", "--json"])
    files = json.loads(done.out)["outputs"]
    torch.testing.assert_close(held(files[1]), expected("a", "gram"))


@pytest.mark.parametrize(
    "data",
    ["{npz: a.npz, rows: ':30'}", "spec.yaml", "sets:first"],
    ids=["inline", "file", "object"],
)
def test_data_may_be_said_in_many_ways(folder, capsys, data):
    (folder / "sets.py").write_text(
        "import numpy as np\nheld = np.load('a.npz')\nfirst = (held['x'][:30], held['y'][:30])\n"
    )
    given = ["a.safetensors", *ARCHITECTURE, "--arguments", "{width: 8}", "--data", data]
    done = run(capsys, ["stats", "gram", *given, "-o", "out.safetensors"])
    assert done.code == 0, done.err
    torch.testing.assert_close(held("out.safetensors"), expected("a", "gram", 30))


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["gramm", "a.safetensors", "--data", "a.npz"], 2, "no statistics 'gramm'. Did you mean 'gram'"),
        (["gram", "a.safetensors", "--data", "{npz: a.npz, row: 3}"], 3, "there is no such key"),
        (["gram", "a.safetensors", "--data", "{npz"], 2, "--data is not YAML"),
        (["gram", "a.safetensors", "--data", "none.yaml"], 2, "none.yaml cannot be read"),
        (["gram", "a.safetensors", "--data", "nowhere"], 3, "nowhere"),
        (["gram", "a.safetensors", "--data", "a.npz", "--arguments", "7"], 2, "must be a mapping"),
        (["gram", "a.safetensors", "--data", "a.npz", "--task", "guessing"], 2, "the task is one of"),
        (["gram", "c.safetensors", "--data", "a.npz"], 4, "c.safetensors"),
        (
            ["gram", *("a.safetensors",) * 3, "--data", "a.npz", "--data", "b.npz"],
            2,
            "3 models and 2 data sets",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_said_and_nothing_is_written(folder, capsys, given, code, said):
    before = sorted(folder.iterdir())
    out = "out" if given.count("a.safetensors") > 1 else "out.safetensors"
    done = run(capsys, ["stats", *given, *ARCHITECTURE, "-o", out])
    assert done.code == code, done.err
    assert said in " ".join(done.err.replace("│", " ").split())
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before
