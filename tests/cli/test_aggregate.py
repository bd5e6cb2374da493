"""``alloykit aggregate`` end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import alloykit
from client_samples import honest, model, same_bits
from command_line import Finished, run

Capture = pytest.CaptureFixture[str]
SERVER = model()
FILES = tuple(f"{name}.safetensors" for name in "abcde")
BASE = ("--base", "server.safetensors")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server and five clients as files, in the current folder."""
    save_file(SERVER, tmp_path / "server.safetensors")
    for file, each in zip(FILES, honest(SERVER), strict=False):
        save_file(each.model, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(capsys: Capture, *words: object, output: str = "out.safetensors") -> Finished:
    return run(capsys, ["aggregate", *words, "-o", output, "--overwrite"])


def result(capsys: Capture, *words: object) -> dict[str, torch.Tensor]:
    ended = done(capsys, *words)
    assert ended.code == 0, ended.err
    return load_file("out.safetensors")


def expected(server: Any = "server.safetensors", **options: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = alloykit.aggregate(server, FILES, **options).model
    return found


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    assert same_bits({n: found[n] for n in wanted}, wanted)


@pytest.mark.parametrize(
    "counts",
    [["--num-examples", "100", "80", "20", "5", "1"], ["--num-examples=100,80,20,5,1"],
     ["--num-examples", "100,80,20,5,1"], ["--num-examples", "1e2", "80", "20", "5", "1"]],
)  # fmt: skip
def test_numbers_of_examples_in_every_form(folder, capsys, counts):
    wanted = expected(num_examples=[100, 80, 20, 5, 1])
    same(result(capsys, *FILES, *BASE, *counts), wanted)
    same(result(capsys, *counts, *FILES, *BASE), wanted)
    assert not same_bits(wanted, expected())


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), {}),
        (("--method", "krum", "--num-malicious", "1"), {"method": "krum"}),
        (("--num-malicious=0", "--method=krum"), {"method": "krum", "parameters": {"num_malicious": 0}}),
        (("--method", "median"), {"method": "median"}),
        (("--method", "trimmed_mean", "--trim", "0.3"), {"method": "trimmed_mean", "parameters": {"trim": 0.3}}),
        (("--method", "rfa", "--weighted", "--num-examples", "1", "2", "3", "4", "5"),
         {"method": "rfa", "parameters": {"weighted": True}, "num_examples": [1, 2, 3, 4, 5]}),
        (("--method", "dp_fixed_clipping", "--clip-norm", "0.1", "--noise-multiplier", "1", "--seed", "3"),
         {"method": "dp_fixed_clipping", "parameters": {"clip_norm": 0.1, "noise_multiplier": 1.0, "seed": 3}}),
        (("--keep", "bn.*", "--keep", "scale"), {"keep": ["bn.*", "scale"]}),
        (("--max-norm", "0.09"), {"checks": {"max_norm": 0.09}}),
        (("--method", "ties", "--density", "0.5"), {"method": "ties", "parameters": {"density": 0.5}}),
    ],
)  # fmt: skip
def test_options_are_the_verbs_arguments(folder, capsys, words, options):
    same(result(capsys, *FILES, *BASE, *words), expected(**options))


def test_without_a_server(folder, capsys):
    same(result(capsys, *FILES), expected(None))


def test_the_table_says_who_counts_and_why_others_do_not(folder, capsys):
    bad = {**load_file("c.safetensors"), "scale": torch.tensor(float("nan"))}
    save_file(bad, "c.safetensors")
    ended = done(capsys, *FILES, *BASE, "--num-examples", "5", "5", "9", "5", "5")
    assert ended.code == 0, ended.err
    text = " ".join(ended.out.split())
    assert "Wrote out.safetensors: fedavg" in text
    assert "left out because" in text
    assert "scale holds 1 NaN" in text
    assert text.count("0.25") == 4
    assert "left out because" not in done(capsys, *FILES[:2], *BASE).out


def test_json_is_the_rounds_record(folder, capsys):
    ended = done(capsys, *FILES, *BASE, "--json", "--max-norm", "0.09")
    found = json.loads(ended.out)
    record = alloykit.aggregate("server.safetensors", FILES, checks={"max_norm": 0.09}).record
    assert found == {"output": "out.safetensors", **json.loads(json.dumps(record.to_json()))}
    assert {each["client"] for each in found["counted"] + found["left_out"]} == set("abcde")
    assert found["left_out"]


@pytest.mark.parametrize("method", ["fedadam", "fedavg", "dp_adaptive_clipping"])
def test_the_state_goes_from_round_to_round(folder, capsys, method):
    words = {"dp_adaptive_clipping": ("--noise-multiplier", "0")}.get(method, ())
    parameters = {"dp_adaptive_clipping": {"noise_multiplier": 0.0}}.get(method)
    server, state = "server.safetensors", None
    for number in (1, 2, 3):
        output = f"round{number}.safetensors"
        ended = done(
            capsys, *FILES, "--base", server, "--method", method, *words, "--state", "kept", "--json",
            output=output,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["round"] == number
        wanted = alloykit.aggregate(server, FILES, method, parameters=parameters, state=state)
        same(load_file(output), wanted.model)
        server, state = output, wanted.state


def test_a_round_that_fails_leaves_state_and_output(folder, capsys):
    assert done(capsys, *FILES, *BASE, "--method", "fedadam", "--state", "kept").code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ended = done(
        capsys, *FILES, *BASE, "--method", "fedadam", "--state", "kept", "--min-clients", "6"
    )
    assert ended.code == 2
    assert "5 updates of at least 6 can be used" in ended.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (FILES[:1], 0, ""),
        ((), 2, "Missing argument"),
        ((*FILES, "--method", "krumm"), 2, "There is no aggregator 'krumm'. Did you mean 'krum'"),
        ((*FILES[:4], "--method", "krum"), 2, "needs at least 5 clients (2 · 1 + 3), and 4 count"),
        ((*FILES, "--method", "fedadam"), 2, "it was not given. Give server=, or a base on the command line: --base FILE"),
        ((*FILES, "--num-examples", "1", "2"), 2, "num_examples has 2 numbers for 5 updates"),
        ((*FILES, "--num-examples", "many"), 2, "many"),
        ((*FILES, "--num-malicious", "1"), 2, "num-malicious"),
        ((*FILES, "--method", "krum", "--num-malicious", "x"), 2, "x"),
        ((*FILES, "--on-bad", "ignore"), 2, "'on_bad' must be one of leave_out, error. Got 'ignore'"),
        ((*FILES, "--max-norm", "-1"), 2, "'max_norm' must be a number above 0"),
        ((*FILES, "--min-clients", "0"), 2, "'min_clients'"),
        ((*FILES, *BASE, "--keep", "batch*"), 2, "'batch*'"),
        ((*FILES, "--keep", "bn.*"), 2, "would be kept as the server has them"),
        ((*FILES, *BASE, "--state", "server.safetensors"), 4, "server.safetensors is no snapshot"),
        ((*FILES, *BASE, "--state", "./out.safetensors"), 2, "--state and --output are both"),
        ((*FILES, "gone.safetensors", "--on-bad", "error"), 3, "Did you mean e.safetensors, d.safetensors, c.safetensors? Checks(on_bad"),
        ((*FILES, "--base", "gone.safetensors"), 4, "gone.safetensors"),
        ((*FILES, *BASE, "--max-norm", "1e-9"), 2, "out.safetensors was not written: 0 updates of at least 1"),
    ],
)  # fmt: skip
def test_mistakes_are_said_and_nothing_is_written(folder, capsys, words, code, said):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ended = run(capsys, ["aggregate", *words, "-o", "out.safetensors"])
    assert ended.code == code, ended.err
    assert said in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    if code:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_outputs_are_not_replaced_unasked(folder, capsys):
    Path("out.safetensors").write_bytes(b"precious")
    ended = run(capsys, ["aggregate", *FILES, "-o", "out.safetensors"])
    assert ended.code == 4
    assert "--overwrite" in ended.err
    assert done(capsys, *FILES, *BASE, output="a.safetensors").code == 4
    assert Path("out.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            None,
            ["--num-examples", "--base", "--keep", "--state", "weighted by its number of examples"],
        ),
        ("krum", ["--num-malicious", "2f + 3", "docs/methods.md#aggregator-krum"]),
        ("dp_fixed_clipping", ["--clip-norm", "--noise-multiplier", "--seed"]),
        ("trimmed_mean", ["--trim"]),
        ("fedadam", ["--server-learning-rate"]),
        ("nonsense", ["--num-examples"]),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_help_lists_the_aggregators_options(folder, capsys, method, words, first):
    named = [] if method is None else ["--method", method]
    ended = run(
        capsys, ["aggregate", *named, "--help"] if first else ["aggregate", "--help", *named]
    )
    assert ended.code == 0
    for word in words:
        assert word in ended.out
    assert ("--num-malicious" in ended.out) == (method == "krum")
