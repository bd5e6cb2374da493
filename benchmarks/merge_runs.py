"""The programs that the merge benchmark compares, as commands."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from merge_checkpoints import shard_files

Tool = Literal["floor", "floor, synced", "alloykit", "alloykit --dry-run", "mergekit", "plain"]


@dataclass(frozen=True)
class Job:
    """One merge that every tool is asked for.

    Attributes:
        method: Its name, the same in both.
        members: Names of the fine-tunes.
        base: Whether the base goes in.
        parameters: The same in both.
    """

    method: str
    members: tuple[str, ...] = ("ft1", "ft2", "ft3")
    base: bool = False
    parameters: tuple[tuple[str, float], ...] = ()


JOBS = {
    job.method: job
    for job in (
        Job("linear"),
        Job("ties", base=True, parameters=(("density", 0.5),)),
        Job("dare_ties", base=True, parameters=(("density", 0.5),)),
        Job("slerp", members=("ft1", "ft2"), parameters=(("t", 0.5),)),
        Job("karcher"),
        Job("model_stock", base=True),
    )
}

PLAIN = """
import sys
from safetensors import safe_open
from safetensors.torch import save_file

*members, output = sys.argv[1:]
models = []
for member in members:
    tensors = {}
    for path in member.split(":"):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    models.append(tensors)
mean = {name: sum(model[name] for model in models) / len(models) for name in models[0]}
save_file(mean, output)
"""
"""What people write when they write it themselves: load, mean in the stored type, save."""


def command(
    tool: Tool, job: Job, checkpoints: dict[str, Path], output: Path, bin_: Path | None
) -> list[str]:
    """What to run.

    Args:
        tool: Whose command.
        job: What to merge.
        checkpoints: Where "base" and the members are.
        output: A folder of our own that is empty.
        bin_: The folder of mergekit's programs.
    """
    members = [checkpoints[name] for name in job.members]
    if tool.startswith("floor"):
        inputs = [*members, checkpoints["base"]] if job.base else members
        return _floor(inputs, output, tool != "floor")
    if tool.startswith("alloykit"):
        made = [sys.executable, "-m", "alloykit.cli", "merge", job.method, *map(str, members)]
        made += ["--base", str(checkpoints["base"])] if job.base else []
        for name, value in job.parameters:
            made += [f"--{name}", str(value)]
        made += ["-o", str(output / "merged.safetensors")]
        return made + ["--dry-run"] * (tool != "alloykit")
    if tool == "plain":
        joined = [":".join(map(str, shard_files(member))) for member in members]
        return [sys.executable, "-c", PLAIN, *joined, str(output / "merged.safetensors")]
    assert bin_ is not None
    return _mergekit(job, checkpoints, output, bin_)


def _floor(inputs: list[Path], output: Path, synced: bool) -> list[str]:
    """Read every input, write one output: what no merge can be cheaper than."""
    read = shlex.join(str(file) for path in inputs for file in shard_files(path))
    first = shlex.join(str(file) for file in shard_files(inputs[0]))
    script = f"cat {read} >/dev/null; cp {first} {shlex.quote(str(output))}"
    if synced:
        script += f"; sync {shlex.quote(str(output))}/*"
    return ["/bin/sh", "-c", script]


def _mergekit(job: Job, checkpoints: dict[str, Path], output: Path, bin_: Path) -> list[str]:
    tiny = checkpoints[job.members[0]].is_file()
    models = [
        {"model": str(checkpoints[name]), "parameters": {"weight": 1.0}} for name in job.members
    ]
    recipe: dict[str, object] = {"merge_method": job.method, "models": models}
    recipe["dtype"] = "float32" if tiny else "bfloat16"
    if job.base or job.method == "slerp":
        recipe["base_model"] = str(checkpoints["base" if job.base else job.members[0]])
    if job.parameters:
        recipe["parameters"] = dict(job.parameters)
    path = output / "recipe.yml"
    path.write_text(json.dumps(recipe))
    if tiny:
        return [str(bin_ / "mergekit-pytorch"), str(path), str(output / "merged")]
    program = str(bin_ / "mergekit-yaml")
    return [program, str(path), str(output / "merged"), "--no-copy-tokenizer", "--quiet"]
