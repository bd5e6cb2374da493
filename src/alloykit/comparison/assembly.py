"""Recipe -> model: rebuild any row of a comparison, and write it as a file.

A recipe is JSON: {"kind": "member" | "ensemble" | "merge" | "fusion" | "trained", "members":
[names], ...}. An ensemble has "rule", "parameters" and the fitted "state"; a merge has "method",
"parameters", "weights", "base", "aligned" where units are matched first, and, where BatchNorm
statistics are to be re-estimated, "batch_norm". What a fusion's head or a trained model learned is
kept apart; "state" finds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.alignment.aligning import aligned
from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.exporting import save_exported
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.provenance import provenance
from alloykit.checkpoints.writing import write_safetensors
from alloykit.comparison import fusing, training_trial
from alloykit.comparison.setting import Member, Setting
from alloykit.data.batches import placed
from alloykit.ensembling.module import Ensemble
from alloykit.errors import (
    AlignmentError,
    CheckpointError,
    InvalidParameter,
    MissingInput,
    OutputExists,
)
from alloykit.evaluation.batch_norm import update_batch_norm
from alloykit.execution.plan import plan_merge
from alloykit.execution.results import in_form_of
from alloykit.execution.run import merge_in_memory
from alloykit.registry import ensemble_rules
from alloykit.types import Checkpoint

PROGRAM_SUFFIX = ".pt2"
WEIGHTS_SUFFIX = ".safetensors"


def assemble(recipe: Mapping[str, Any], setting: Setting) -> nn.Module:
    """The model that a recipe describes, in eval mode. Members are never changed."""
    members = [setting.member(name) for name in recipe["members"]]
    if recipe["kind"] == "member":
        return members[0].module
    if recipe["kind"] == "ensemble":
        state = {name: torch.tensor(value) for name, value in recipe["state"].items()}
        return Ensemble(
            {member.name: member.module for member in members},
            ensemble_rules.build(recipe["rule"], **recipe["parameters"]),
            state,
            task=setting.task,
            kinds=[setting.kinds[member.name] for member in members],
        )
    if recipe["kind"] == "fusion":
        return fusing.assembled(recipe, setting)
    if recipe["kind"] == "trained":
        return training_trial.assembled(recipe, setting)
    base = setting.base if recipe["base"] is not None else None
    checkpoints = [member.checkpoint for member in members]
    if recipe.get("aligned"):
        checkpoints = _aligned(members, setting)
    plan = plan_merge(
        checkpoints,
        recipe["method"],
        recipe["parameters"],
        weights=recipe["weights"],
        base=base,
        seed=setting.seed,
    )
    module: nn.Module = in_form_of(members[0].module, merge_in_memory(plan, checkpoints, base))
    if recipe.get("batch_norm") and setting.batch_norm is not None:
        update_batch_norm(module, setting.batch_norm.batches())
    return module.eval()


def _aligned(members: Sequence[Member], setting: Setting) -> list[Checkpoint]:
    """The members' tensors with their units in the order of the first."""
    inputs = placed(setting.validation.inputs_sample(), members[0].module)
    try:
        models = aligned([member.module for member in members], inputs, seed=setting.seed)
    except AlignmentError as error:
        raise MissingInput(f"Its units cannot be matched. {error}") from error
    named = zip(members, models, strict=True)
    return [open_checkpoint(model, name=member.name) for member, model in named]


def _require_unchanged(recipe: Mapping[str, Any], setting: Setting) -> None:
    """Members share tensors with the caller's modules, which may have been trained on since."""
    members = [setting.member(name) for name in recipe["members"]]
    changed = [m.name for m in members if content_digest(m.checkpoint) != m.digest]
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)} changed after the comparison, which is not about these weights "
            "any more. Compare again, or give the comparison copies."
        )


def _digests(recipe: Mapping[str, Any], setting: Setting) -> dict[str, str]:
    digests = {name: setting.member(name).digest for name in recipe["members"]}
    if recipe.get("base") is not None and setting.base is not None:
        digests["base"] = content_digest(setting.base)
    return digests


def suffix_of(recipe: Mapping[str, Any]) -> str:
    """The kind of file that a recipe is written as."""
    return PROGRAM_SUFFIX if recipe["kind"] in ("ensemble", "fusion") else WEIGHTS_SUFFIX


def save_assembled(
    recipe: Mapping[str, Any], setting: Setting, path: Path, *, overwrite: bool = False
) -> Path:
    """Write what a recipe describes: weights as safetensors, an ensemble as an exported program.

    Raises:
        InvalidParameter: A file name that promises another kind of file.
        OutputExists: The file exists and ``overwrite`` is not set.
    """
    wanted = suffix_of(recipe)
    if path.suffix != wanted:
        holds = "several models" if wanted == PROGRAM_SUFFIX else "the weights of one model"
        raise InvalidParameter(
            f"{path.name}: this winner is {holds} and is written as a {wanted} file. "
            f"Name it {path.with_suffix(wanted).name}."
        )
    sources = [*(member.source for member in setting.members), setting.base_source]
    inputs = [Path(source.partition("#")[0]) for source in sources if source != "in memory"]
    if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise OutputExists(f"{path} is an input of this comparison. Choose another name.")
    _require_unchanged(recipe, setting)
    model = assemble(recipe, setting)
    if wanted == PROGRAM_SUFFIX:
        example = placed(setting.validation.inputs_sample(), model)
        save_exported(model, path, example, overwrite=overwrite)
        return path
    result = open_checkpoint(model)
    write_safetensors(
        path,
        result.specs(),
        ((name, result.read(name)) for name in result.specs()),
        metadata=provenance(
            inputs=_digests(recipe, setting),
            method=recipe.get("method", recipe["kind"]),
            parameters={**recipe.get("parameters", {}), "recipe": json.dumps(recipe)},
            weights=dict(zip(recipe["members"], recipe["weights"], strict=True))
            if recipe.get("weights")
            else None,
        ),
        overwrite=overwrite,
        inputs=inputs,
    )
    return path
