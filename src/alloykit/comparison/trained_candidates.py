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

WEIGHT_AVERAGE = "weight average"


def fusion_candidates(setting: Setting) -> Iterator[Candidate]:
    """Every head over the members' outputs, and over their features where it takes them."""
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
        if "features" in head.sources and parameters == entry.contract["candidates"][0]:
            name = f"{named.name} on features"
            yield _on_features(replace(named, name=name, source="features"), setting)


def _on_features(candidate: Candidate, setting: Setting) -> Candidate:
    if setting.task == "tokens":
        return replace(candidate, why_not="Features of tokens are not compared; fuse takes them.")
    return candidate


def training_candidates(setting: Setting) -> Iterator[Candidate]:
    """Students of the members, and what training on all data, or on little, would give."""
    names = tuple(member.name for member in setting.members)
    group = tuple(member.name for member in setting.groups[0])
    averages = "" if len(group) > 1 else "No two members have the same tensors to average."
    for candidate, needs_train, why_not in (
        (Candidate(f"student of {AVERAGE}", "student", AVERAGE, members=names), True, ""),
        (Candidate(f"student of {HEAD} head", "student", HEAD, members=names), True, ""),
        (
            Candidate(
                f"{WEIGHT_AVERAGE} taught by {AVERAGE}", "student", AVERAGE,
                members=names, start=group,
            ),
            True,
            averages,
        ),
        (Candidate("retrained on train", "retrained", "train"), True, ""),
        (Candidate("trained on validation alone", "retrained", "validation"), False, ""),
        (
            Candidate(f"{WEIGHT_AVERAGE} fine-tuned on validation", "retrained", "validation",
                      start=group),
            False,
            averages,
        ),
    ):  # fmt: skip
        reason = _not_trained(candidate, setting, needs_train) or why_not
        yield replace(candidate, why_not=reason)


def _not_trained(candidate: Candidate, setting: Setting, needs_train: bool) -> str:
    if candidate.method == HEAD and setting.task not in fusion_heads.entry(HEAD).contract["tasks"]:
        return f"{HEAD} is not made for {setting.task}."
    if setting.training is None:
        return (
            "It trains a model, which takes time: ask for it with training=Training(epochs=...), "
            "or the key 'training' of a study."
        )
    if needs_train and setting.train is None:
        return "It trains on the train split, and none was given."
    return ""
