"""The candidates that are trained: fusion heads, students, and what retraining would give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from alloykit.comparison.candidate import Candidate, label
from alloykit.comparison.setting import Setting
from alloykit.errors import MissingExtra
from alloykit.registry import Entry, fusion_heads

AVERAGE, HEAD = "average", "concat"
"""Who teaches the students: the mean of the members' probabilities, and this fusion head."""

ON_FEATURES = ("concat", "attention_mean")
"""Heads that are compared on features too: the one that is solved, and the best of the others."""

WEIGHT_AVERAGE = "weight average"


def fusion_candidates(setting: Setting) -> Iterator[Candidate]:
    """Every head over the members' outputs, and two of them over their features."""
    for entry in fusion_heads.entries():
        yield from _heads(entry, setting)


def _heads(entry: Entry, setting: Setting) -> Iterator[Candidate]:
    names = tuple(member.name for member in setting.members)
    every = Candidate(f"{entry.name} head", "fusion", entry.name, members=names)
    if setting.task not in entry.contract["tasks"]:
        yield replace(every, why_not=f"It is not made for {setting.task}.")
        return
    for parameters in entry.contract["candidates"]:
        try:
            head = entry.build(**parameters)
        except MissingExtra as error:
            yield replace(every, why_not=str(error))
            return
        named = replace(every, name=label(f"{entry.name} head", parameters), parameters=parameters)
        if head.context == "required":
            yield _on_features(replace(named, context="features"), setting)
            continue
        yield named
        if entry.name in ON_FEATURES and parameters == entry.contract["candidates"][0]:
            name = f"{named.name} on features"
            yield _on_features(replace(named, name=name, source="features"), setting)


def _on_features(candidate: Candidate, setting: Setting) -> Candidate:
    if setting.task == "tokens":
        return replace(candidate, why_not="Features of tokens are not compared; fuse takes them.")
    return candidate


def training_candidates(setting: Setting) -> Iterator[Candidate]:
    """Students of the members, and what training on all data, or on little, would give."""
    names = tuple(member.name for member in setting.members)
    group = tuple(member.name for member in setting.alike)
    averages = "" if len(group) > 1 else "No two members have the same tensors to average."
    student = Candidate("", "student", "distill", members=names, learns_from=AVERAGE)
    retrained = Candidate("", "retrained", "retrain", learns_from="validation")
    for candidate, why_not in (
        (replace(student, name=f"student of {AVERAGE}"), ""),
        (replace(student, name=f"student of {HEAD} head", learns_from=HEAD), ""),
        (replace(student, name=f"{WEIGHT_AVERAGE} taught by {AVERAGE}", start=group), averages),
        (
            replace(
                student,
                name=f"{WEIGHT_AVERAGE} taught by {AVERAGE}, without labels",
                parameters={"alpha": 0.0},
                start=group,
            ),
            averages,
        ),
        (replace(retrained, name="retrained on train", learns_from="train"), ""),
        (replace(retrained, name="trained on validation alone"), ""),
        (
            replace(retrained, name=f"{WEIGHT_AVERAGE} fine-tuned on validation", start=group),
            averages,
        ),
    ):
        reason = _not_trained(candidate, setting) or why_not
        yield replace(candidate, why_not=reason)


def _not_trained(candidate: Candidate, setting: Setting) -> str:
    if setting.training is None:
        return (
            'It trains a model, which takes time: ask for it with training={"epochs": ...}, '
            "or the key 'training' of a study."
        )
    if candidate.learns_from != "validation" and setting.train is None:
        return "It trains on the train split, and none was given."
    like = setting.alike[0].name
    of_its_own = setting.student is not None and not candidate.start
    if not of_its_own and setting.kinds[like] == "probabilities":
        return (
            f"{like} returns probabilities, and training takes logits: give students an "
            "architecture of their own, without the softmax."
        )
    return ""
