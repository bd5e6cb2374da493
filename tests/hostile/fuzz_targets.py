"""What the fuzzer attacks: for each reader, seeds, how to restructure them, and what must hold."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from bad_files import repacked, safetensors, saved
from dcp_samples import dcp_folder
from mutations import mutated, restructured, spelt
from safetensors import deserialize
from safetensors.torch import save, save_file

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import AlloyError

MOST_WORDS = 4000
A, B = "model-1.safetensors", "model-2.safetensors"


@dataclass(frozen=True)
class Target:
    """A reader under attack.

    Attributes:
        seeds: Inputs, good and bad, to start from.
        change: An input, the others and a source of chance -> another input.
        prepare: Puts what the reader needs beside the input into an empty folder.
        file: Name of the input in that folder.
        read: Runs the reader on that folder; raises AssertionError where what it gives is wrong.
    """

    seeds: Sequence[bytes]
    change: Callable[[bytes, Sequence[bytes], Random], bytes]
    prepare: Callable[[Path], object]
    file: str
    read: Callable[[Path], None]


def attack(target: Target, folder: Path, data: bytes) -> str:
    """Give one input to the reader; the text of its refusal, or "" where it was accepted.

    Raises:
        AssertionError: The refusal does not name the file, is too long or could harm a terminal.
        Exception: Anything but an error that was meant.
    """
    (folder / target.file).write_bytes(data)
    try:
        target.read(folder)
    except AlloyError as error:
        text = str(error)
        assert folder.name in text, f"the file is not named: {text[:500]}"
        assert len(text) < MOST_WORDS, f"{len(text)} characters"
        assert all(line.isprintable() for line in text.split("\n")), f"unprintable: {text[:500]!r}"
        return text
    return ""


def _nothing(_folder: Path) -> None:
    pass


def _header_seeds() -> list[bytes]:
    import test_hostile_safetensors

    names = {"model.layers.0.weight": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    every = {str(d): torch.zeros(3).to(d) for d in (torch.int8, torch.bool, torch.float16)}
    good = [save(names, {"format": "pt"}), save(every), save({"s": torch.tensor(1.0)})]
    return good + [
        content for content, _ in test_hostile_safetensors.CASES.values() if len(content) < 1 << 16
    ]


def _header_change(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    if rng.random() < 0.5:
        return mutated(data, others, rng)
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length], data[8 + length :]
    try:
        text = spelt(restructured(json.loads(text), rng), rng)
    except (ValueError, RecursionError):
        text = mutated(text, others, rng)
    if rng.random() < 0.2:
        rest = mutated(rest, others, rng)
    return safetensors(text, rest)


def _read_header(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "a.safetensors")
    theirs = dict(deserialize((folder / "a.safetensors").read_bytes()))
    assert theirs.keys() <= checkpoint.specs().keys(), "names that the format's own reader lacks"
    for name, record in theirs.items():
        spec = checkpoint.specs()[name]
        assert list(spec.shape) == record["shape"], f"{name} has another shape"
        found = checkpoint.read(name).reshape(-1).view(torch.uint8).numpy().tobytes()
        assert found == bytes(record["data"]), f"{name} has other bytes"


def _index_prepare(folder: Path) -> None:
    save_file({"a": torch.ones(1), "b.c": torch.ones(2)}, folder / A)
    save_file({"d": torch.ones(1)}, folder / B)
    (folder / "sub.safetensors").mkdir()


def _index_seeds() -> list[bytes]:
    import test_hostile_folders

    good = {"metadata": {"total_size": 16}, "weight_map": {"a": A, "b.c": A, "d": B}}
    bad = [index for index, _ in test_hostile_folders.INDEXES.values()]
    texts = [i if isinstance(i, bytes) else json.dumps(i).encode() for i in bad]
    return [json.dumps(good).encode(), *(text for text in texts if len(text) < 1 << 16)]


def _json_change(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    if rng.random() < 0.5:
        try:
            return spelt(restructured(json.loads(data), rng), rng)
        except (ValueError, RecursionError):
            pass
    return mutated(data, others, rng)


def _read_index(folder: Path) -> None:
    names = set(open_checkpoint(folder).specs())
    assert names in ({"a", "b.c"}, {"d"}, {"a", "b.c", "d"}), f"other names: {names}"


def _pickle_seeds() -> list[bytes]:
    import test_hostile_pickles

    w = torch.ones(2, 3)
    content = {"model": {"w": w, "v": w[1]}, "epoch": 3, "args": {"lr": [0.1, (1, None)]}}
    good = [
        saved({"w": w}),
        saved(content),
        saved(content, _use_new_zipfile_serialization=False),
        saved({"w": w, "x": torch.Size([1])}, pickle_protocol=4),
        pickle.dumps(content["args"], 0),
    ]
    bad = [make() for make, _ in test_hostile_pickles.BROKEN.values()]
    return good + [data for data in bad if len(data) < 1 << 14]


def _read_pickle(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "a.pth", trust_pickle=True)
    for name in checkpoint.specs():
        checkpoint.read(name)


def _pickle_change(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Inside a zip archive only the pickle is changed, most of the time; its CRC is made good."""
    if data[:4] != b"PK\x03\x04" or rng.random() < 0.2:
        return mutated(data, others, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            pickled = mutated(archive.read(name), others, rng)
        return repacked(data, change={name.partition("/")[2]: pickled})
    except Exception:
        return mutated(data, others, rng)


def _dcp_prepare(folder: Path) -> Path:
    tensors = {"w": torch.arange(12.0).reshape(3, 4), "m.b": torch.ones(2, dtype=torch.bool)}
    paths = {"w": ("model", "w"), "m.b": ("model", "b"), "step": ("step",)}
    return dcp_folder(folder, tensors, parts={"w": (3, 2)}, others=["step"], paths=paths)


def _dcp_seeds() -> list[bytes]:
    with TemporaryDirectory() as folder:
        good = (_dcp_prepare(Path(folder)) / ".metadata").read_bytes()
    return [good, pickle.dumps(pickle.loads(good), 2), b"", pickle.dumps({"w": 1})]


def _read_dcp(folder: Path) -> None:
    checkpoint = open_checkpoint(folder, trust_pickle=True)
    for name, spec in checkpoint.specs().items():
        whole = checkpoint.read(name).reshape(-1)
        part = checkpoint.read(name, start=spec.numel // 3, stop=spec.numel)
        assert torch.equal(whole[spec.numel // 3 :], part), f"{name}: parts differ from the whole"


def _recipe_change(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    if rng.random() < 0.5:
        try:
            tree: Any = restructured(yaml.safe_load(data), rng)
            return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
        except (yaml.YAMLError, ValueError, RecursionError, TypeError):
            pass
    return mutated(data, others, rng)


RECIPES = (
    b"""merge_method: linear
models:
  - model: a.safetensors
    parameters: {weight: 1}
  - model: b.safetensors
    parameters: {weight: 0.5}
dtype: bfloat16
""",
    b"""merge_method: ties
base_model: base.safetensors
models:
  - model: a.safetensors
    parameters:
      density: [1, 0.7, 0.1]
      weight:
        - filter: mlp
          value: 0.5
        - value: 1
parameters:
  normalize: true
out_dtype: float16
""",
    b"""&a
merge_method: slerp
parameters: {t: 0.5, lambda: 1.0, x: *a}
models: [{model: a}, {model: b}]
""",
    b"a: &x [1, 2]\nb: [*x, *x, *x]\nc: {<<: {a: 1}, a: 2}\n",
    b"slices:\n  - sources:\n      - model: a\n        layer_range: [0, 4]\n",
)


def _recipe_prepare(folder: Path) -> None:
    for name in ("a", "b", "base"):
        save_file({"w": torch.ones(1)}, folder / f"{name}.safetensors")


def _read_recipe(folder: Path) -> None:
    from alloykit.recipes.reading import read_recipe

    recipe = read_recipe(folder / "recipe.yaml")
    recipe.arguments()
    recipe.to_yaml()


TARGETS = {
    "header": Target(_header_seeds(), _header_change, _nothing, "a.safetensors", _read_header),
    "index": Target(
        _index_seeds(), _json_change, _index_prepare, "model.safetensors.index.json", _read_index
    ),
    "recipe": Target(RECIPES, _recipe_change, _recipe_prepare, "recipe.yaml", _read_recipe),
    "pickle": Target(_pickle_seeds(), _pickle_change, _nothing, "a.pth", _read_pickle),
    "dcp": Target(_dcp_seeds(), mutated, _dcp_prepare, ".metadata", _read_dcp),
}
