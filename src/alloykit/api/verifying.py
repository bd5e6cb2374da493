"""The verb that asks a merged file where it came from, and whether that is true."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from alloykit.api.inputs import target_path
from alloykit.api.merging import merge
from alloykit.api.planning import DIGESTS, Job, planned
from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError, MissingInput
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.plan import Step
from alloykit.execution.schedules import from_json
from alloykit.threads import one_thread_each
from alloykit.types import Checkpoint

SPOTS, SPOT = 64, 1 << 16
"""Places at which a result is computed again, and elements at each of them."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What it was: "input a", "version", "values".
        ok: Whether it is as recorded.
        detail: What was found, in words.
    """

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """What a file claims about its making, and what of it holds.

    Attributes:
        path: The file.
        record: Its provenance, parsed.
        findings: Everything that was looked at.
    """

    path: Path
    record: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at is as recorded."""
        return all(finding.ok for finding in self.findings)


def verify(
    path: str | Path,
    *,
    inputs: Mapping[str, str | Path] | None = None,
    replay: str | Path | None = None,
    trust_pickle: bool = False,
) -> Verification:
    """Check whether a merged file is what its provenance claims.

    The recorded inputs are found and their digests compared; the merge is planned again from the
    recorded settings; and at 64 places of the result the values are computed anew and compared
    bit for bit. With ``replay`` the whole result is.

    Args:
        path: A file, or folder of shards, that ``merge`` wrote.
        inputs: Name of an input ("base" for the base) -> where it is now, if it was moved.
        replay: Where to write the result once more, to be compared whole; a file that must not
            exist. Nothing is compared at 64 places then.
        trust_pickle: Open pickled inputs that refer to unknown classes.

    Raises:
        CheckpointError: The file cannot be read or says nothing about its making.
        MissingInput: ``replay`` without inputs to replay from.
    """
    output = open_checkpoint(path)
    record = _record(output)
    recipe = dict(record.get("recipe") or {})
    if not recipe:
        raise CheckpointError(
            f"{shown(str(path))} does not say how it was made: it was not written by "
            "'alloykit merge', or from models in memory without a recipe."
        )
    moved = {name: str(place) for name, place in (inputs or {}).items()}
    places = _places(recipe, moved)
    findings = [_version(record), *_inputs(record, places)]
    found = Path(path).expanduser()
    if any(not finding.ok for finding in findings[1:]):
        if replay is not None:
            raise MissingInput(
                "Replaying takes the recorded inputs, and these are not as recorded:\n"
                + "\n".join(f"  {f.what}: {f.detail}" for f in findings[1:] if not f.ok)
            )
        return Verification(found, record, tuple(findings))
    arguments = _arguments(recipe, places, trust_pickle)
    if replay is not None:
        findings.append(_replayed(found, Path(replay), arguments))
    else:
        findings += _recomputed(output, planned(**arguments))
    return Verification(found, record, tuple(findings))


def _record(output: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in output.metadata.items():
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _places(recipe: Mapping[str, Any], moved: Mapping[str, str]) -> dict[str, str | None]:
    """Name of every input -> where it is, or None for one that was only in memory."""
    models = {model["name"]: model["path"] for model in recipe["models"]}
    places = {name: moved.get(name, place) for name, place in models.items()}
    if recipe.get("base") is not None or "base" in moved:
        places["base"] = moved.get("base", recipe.get("base"))
    unknown = sorted(moved.keys() - places.keys())
    if unknown:
        raise MissingInput(
            f"The file has no input {unknown[0]!r}. Its inputs: {', '.join(places)}."
        )
    return places


def _version(record: Mapping[str, Any]) -> Finding:
    made, here = str(record.get("alloykit")), metadata.version("alloykit")
    if made == here:
        return Finding("version", True, f"made by alloykit {made}, as is installed here")
    return Finding("version", True, f"made by alloykit {made}; {here} is installed here")


def _inputs(record: Mapping[str, Any], places: Mapping[str, str | None]) -> list[Finding]:
    findings = []
    for name, digest in record["inputs"].items():
        what, place = f"input {name}", places.get(name)
        if place is None:
            findings.append(Finding(what, False, "it was in memory: give a file with inputs="))
        elif not Path(place).exists():
            findings.append(Finding(what, False, f"there is no {shown(place)} any more"))
        else:
            findings.append(_compared(what, place, str(digest)))
    return findings


def _compared(what: str, place: str, digest: str) -> Finding:
    kind, sha = digest.partition(":")[0], "sha256"
    now = DIGESTS["fingerprint" if kind == "fingerprint" else sha](place)
    if now == digest:
        return Finding(what, True, f"{kind} as recorded: {shown(place)}")
    if kind == sha and content_digest(open_checkpoint(place)) == digest:
        return Finding(what, True, f"content as recorded: {shown(place)}")
    return Finding(what, False, f"{shown(place)} is not what was merged: its {kind} differs")


def _arguments(
    recipe: Mapping[str, Any], places: Mapping[str, str | None], trust_pickle: bool
) -> dict[str, Any]:
    """Arguments of ``merge`` from the recorded ones."""
    return {
        "models": {model["name"]: places[model["name"]] for model in recipe["models"]},
        "method": recipe["method"],
        "base": places.get("base"),
        "weights": from_json(recipe["weights"]),
        "strict": recipe["strict"],
        "parameters": {key: from_json(value) for key, value in recipe["parameters"].items()},
        "stats": recipe.get("stats") or None,
        "dtype": recipe["dtype"],
        "seed": recipe["seed"],
        "trust_pickle": trust_pickle,
    }


def _replayed(made: Path, again: Path, arguments: Mapping[str, Any]) -> Finding:
    shards = sorted(made.glob("*.safetensors")) if made.is_dir() else []
    again = target_path(again, 1 if shards else None)
    if shards:
        raise MissingInput("Replaying writes one file; replay to NAME.safetensors.")
    merge(**arguments, output=again)
    same = _contents(made) == _contents(again)
    detail = "the replay is the same, bit for bit" if same else "the replay differs"
    return Finding("values", same, f"{detail}: {shown(str(again))}")


def _contents(path: Path) -> str:
    return content_digest(open_checkpoint(path))


def _recomputed(output: Checkpoint, job: Job) -> list[Finding]:
    specs, planned_specs = output.specs(), job.plan.specs()
    same = {n: (s.shape, s.dtype) for n, s in specs.items()} == {
        n: (s.shape, s.dtype) for n, s in planned_specs.items()
    }
    if not same:
        return [Finding("tensors", False, "names, shapes or dtypes are not those of the plan")]
    arithmetic = job.arithmetic()
    steps = [step for step in job.plan.steps if step.action != "tie" and specs[step.name].numel]
    different: list[str] = []
    states: dict[str, Any] = {}
    places = _spots(steps)
    with one_thread_each():
        for step, start, stop in places:
            expected = _computed(arithmetic, states, step, start, stop)
            found = output.read(step.name, start=start, stop=stop)
            if not torch.equal(as_bytes(found), as_bytes(expected)):
                different.append(step.name)
    if different:
        names = ", ".join(map(shown, dict.fromkeys(different)))
        return [Finding("values", False, f"computed again they differ, in {names}")]
    return [Finding("values", True, f"computed again at {len(places)} places: the same bits")]


def _spots(steps: Sequence[Step]) -> list[tuple[Step, int, int]]:
    """Ranges spread evenly over all elements; of small models everything."""
    counts = [-(-torch.Size(step.shape).numel() // SPOT) for step in steps]
    ends = list(accumulate(counts))
    total = ends[-1] if ends else 0
    wanted = range(total) if total <= SPOTS else (total * i // SPOTS for i in range(SPOTS))
    spots = []
    for index in wanted:
        position = bisect_right(ends, index)
        start = (index - ends[position] + counts[position]) * SPOT
        numel = torch.Size(steps[position].shape).numel()
        spots.append((steps[position], start, min(start + SPOT, numel)))
    return spots


def _computed(
    arithmetic: Arithmetic, states: dict[str, Any], step: Step, start: int, stop: int
) -> torch.Tensor:
    out = torch.empty(stop - start, dtype=getattr(torch, step.dtype))
    if step.action != "merge":
        arithmetic.resolve(step, start, out)
        return out
    merged = arithmetic.merged(step)
    whole = merged.whole(SPOT)
    if step.name not in states:
        states.clear()  # the ranges come tensor by tensor
        states[step.name] = merged.prepare(whole=whole)
    merged.fill(start, out, states[step.name], whole=whole)
    return out
