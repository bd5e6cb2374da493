"""What is this? Of a checkpoint, a recipe or another file on disk, from its headers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alloykit.checkpoints.dcp_folder import INDEX, is_dcp
from alloykit.checkpoints.digests import WEIGHT_FILES
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.other_formats import other_format
from alloykit.checkpoints.quantised import packed
from alloykit.checkpoints.sharded_folder import is_index
from alloykit.checkpoints.source_file import SourceFile
from alloykit.checkpoints.wording import amount, counted, shown
from alloykit.numerics import is_averaged
from alloykit.recipes.reading import read_recipe
from alloykit.recipes.strict_yaml import read_yaml
from alloykit.types import Checkpoint, TensorSpec

STATS = "alloykit.stats"
YAML = frozenset({".yaml", ".yml"})
GGUF_HEAD = 24
OURS = frozenset(
    {"alloykit", "inputs", "method", "notes", "parameters", "weights", "recipe", "format", STATS}
)
"""Keys of metadata that are told in words, or say nothing."""


@dataclass(frozen=True)
class Description:
    """What was found at a path.

    Attributes:
        path: The path as it was given.
        kind: What it is, in words: "a safetensors file", "a recipe".
        facts: What is known of it, by name, in the order to be read.
        notes: What a reader should know, and how to go on.
        checkpoint: Whether it holds tensors that can be read.
    """

    path: str
    kind: str
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    checkpoint: bool = False


def describe(path: str | Path, *, trust_pickle: bool = False) -> Description:
    """Say what a file or folder is, and what it holds; no tensor is read, and nothing is run.

    Use it before anything else, above all on files from others: checkpoints of every kind that
    alloykit opens, results of a merge (how they were made), files of statistics, recipes, and
    formats that cannot be merged (what to do instead).

    Args:
        path: A file or a folder; "run.ckpt#ema" names an entry of a training checkpoint.
        trust_pickle: As in ``open_checkpoint``.

    Raises:
        CheckpointError: There is nothing, or nothing that is known.
        InvalidRecipe: A YAML file that is no usable recipe.

    Example:
        >>> import tempfile
        >>> from alloykit.checkpoints.writing import write_safetensors
        >>> import torch
        >>> tensors = open_checkpoint({"w": torch.ones(2, 3)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "a.safetensors"
        ...     write_safetensors(file, tensors.specs(), [("w", torch.ones(2, 3))], metadata={})
        ...     describe(file).kind
        'a safetensors file'
    """
    file = Path(path).expanduser()
    if file.suffix.lower() in YAML:
        return _of_yaml(str(path), file)
    if file.is_file() and (words := other_format(SourceFile(file))):
        return Description(str(path), _first(words), _gguf(file), (_rest(words),))
    checkpoint = open_checkpoint(str(path), trust_pickle=trust_pickle)
    return _of_checkpoint(str(path), checkpoint)


def _first(words: str) -> str:
    """The first clause of what ``other_format`` says: what the file is."""
    return words.partition(". ")[0].partition(", ")[0].removesuffix(".")


def _rest(words: str) -> str:
    return words[0].upper() + words[1:]


def _gguf(file: Path) -> dict[str, Any]:
    """What the first bytes of a GGUF file say."""
    with file.open("rb") as stream:
        head = stream.read(GGUF_HEAD)
    if head[:4] != b"GGUF" or len(head) < GGUF_HEAD:
        return {}
    numbers = (int.from_bytes(head[a:b], "little") for a, b in ((4, 8), (8, 16), (16, 24)))
    version, tensors, entries = numbers
    return {"version": version, "tensors": tensors, "entries of metadata": entries}


def _of_yaml(path: str, file: Path) -> Description:
    content = read_yaml(file).content
    if isinstance(content, Mapping) and "merge_method" not in content:
        members = content.get("members")
        count = {"members": len(members)} if isinstance(members, list) else {}
        if "members" in content:
            return Description(path, "a study", count, ("Run it: alloykit compare",))
        if "federation" in content:
            return Description(path, "a study of a federation", {}, ("Run it: alloykit federate",))
    recipe = read_recipe(file)
    named = [entry.model for entry in recipe.models]
    named += [recipe.base_model] if recipe.base_model else []
    there = {name: _existing(str(file.parent / Path(name).expanduser())) for name in named}
    missing = [shown(name) for name, at in there.items() if not at.exists()]
    facts = {
        "method": recipe.merge_method,
        "models": [entry.model for entry in recipe.models],
        "base": recipe.base_model,
        "parameters": recipe.parameters,
    }
    notes = [f"not there: {', '.join(missing)}"] if missing else []
    known = {key: value for key, value in facts.items() if value is not None}
    return Description(path, "a recipe", known, (*notes, *recipe.notes()))


def _of_checkpoint(path: str, checkpoint: Checkpoint) -> Description:
    specs = checkpoint.specs()
    distinct: dict[object, tuple[TensorSpec, str]] = {}
    for name, spec in specs.items():
        distinct.setdefault((spec.place, spec.shape), (spec, name))
    largest, name = max(distinct.values(), key=lambda each: each[0].nbytes)
    tied = len(specs) - len(distinct)
    files = _files(path)
    facts: dict[str, Any] = {
        "files": len(files) if len(files) > 1 else None,
        "on disk": amount(sum(file.stat().st_size for file in files)),
        "tensors": f"{len(specs)}, of which {tied} tied" if tied else len(specs),
        "parameters": sum(spec.numel for spec, _ in distinct.values() if is_averaged(spec.dtype)),
        "dtypes": sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()}),
        "largest": f"{shown(name)} {list(largest.shape)}, {amount(largest.nbytes)}",
        **_made(checkpoint.metadata),
    }
    notes = [*getattr(checkpoint, "notes", ()), *_packed(checkpoint)]
    known = {key: value for key, value in facts.items() if value is not None}
    return Description(path, _kind(path, checkpoint.metadata), known, tuple(notes), True)


def _kind(path: str, metadata: Mapping[str, str]) -> str:
    if STATS in metadata:
        return "statistics of a model"
    if "method" in metadata and "alloykit" in metadata:
        return "the result of a merge"
    file = _existing(path)
    if file.is_dir():
        return "a torch distributed checkpoint" if is_dcp(file) else "a folder of weights"
    if is_index(file):
        return "an index of shards"
    suffix = file.suffix.lower()
    known = {".safetensors": "a safetensors file", ".npz": "a NumPy archive"}
    return known.get(suffix, "a file of torch.save")


def _made(metadata: Mapping[str, str]) -> dict[str, Any]:
    """How a file was made, where it says so, and whatever else it says."""
    said = {key: _decoded(text) for key, text in metadata.items() if key in OURS}
    found: dict[str, Any] = {}
    if "method" in said and "alloykit" in said:
        found["made by"] = f"{said['method']}, alloykit {said['alloykit']}"
    for key, name in (("parameters", "settings"), ("notes", "remarks")):
        found[name] = said.get(key) or None
    found |= {key: said.get(key) or None for key in ("weights", "inputs")}
    stats = said.get(STATS)
    if isinstance(stats, dict):
        found |= {f"made with {key}" if key == "alloykit" else key: v for key, v in stats.items()}
    other = {shown(k): shown(v) for k, v in metadata.items() if k not in OURS and "." not in k}
    return {**found, "metadata": other or None}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return shown(text)


def _packed(checkpoint: Checkpoint) -> list[str]:
    schemes: dict[str, list[str]] = {}
    for name, words in packed(checkpoint.specs()).items():
        schemes.setdefault(words, []).append(name)
    return [
        f"{counted(len(names), 'tensor')} cannot be merged, such as {shown(names[0])}: {words}"
        for words, names in schemes.items()
    ]


def _existing(path: str) -> Path:
    """The file or folder, without the entry that may be named behind it."""
    file = Path(path).expanduser()
    if not file.exists() and "#" in path:
        file = Path(path.rpartition("#")[0]).expanduser()
    return file.parent if file.name == INDEX else file


def _files(path: str) -> list[Path]:
    file = _existing(path)
    folder = file if file.is_dir() else file.parent
    if file.is_file() and not is_index(file):
        return [file]
    return sorted({each for pattern in WEIGHT_FILES for each in folder.glob(pattern)})
