"""Every way of combining the members that the registries offer, or why it does not apply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alloykit.checkpoints.matching import match
from alloykit.comparison.candidate import Candidate, label
from alloykit.comparison.federated import federated_candidates
from alloykit.comparison.setting import Setting
from alloykit.comparison.trained_candidates import fusion_candidates, training_candidates
from alloykit.errors import InvalidParameter, UnknownName, did_you_mean
from alloykit.evaluation.batch_norm import has_batch_norm
from alloykit.registry import Entry, ensemble_rules, merge_methods, soups
from alloykit.types import Family

ALIGNED = "aligned average"
"""The average of members whose units were matched first."""


def all_candidates(setting: Setting) -> list[Candidate]:
    """Members, what reuses their predictions, merges, soups, and last what has to be trained."""
    every = [
        *(Candidate(m.name, "member", members=(m.name,)) for m in setting.members),
        *(c for entry in ensemble_rules.entries() for c in _ensembles(entry, setting)),
        *(c for entry in merge_methods.entries() for c in _merges(entry, setting)),
        *(c for entry in soups.entries() for c in _soups(entry, setting)),
        *_repairs(setting),
        *fusion_candidates(setting),
        *training_candidates(setting),
        *federated_candidates(setting),
    ]
    names = [candidate.name for candidate in every]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidParameter(
            f"Members cannot have the names of candidates: {', '.join(twice)}. Name them otherwise."
        )
    return every


def _repairs(setting: Setting) -> Iterator[Candidate]:
    """What can be gained without combining, so that combining is not credited with it."""
    if setting.batch_norm is not None:
        for member in setting.members:
            if has_batch_norm(member.module):
                name = f"{member.name} (BatchNorm re-estimated)"
                yield Candidate(name, "weights", "linear", members=(member.name,))
    for entry in ensemble_rules.entries():
        if entry.contract["keeps"] == "nothing" and setting.task in entry.contract["tasks"]:
            for member in setting.members:
                name = f"{entry.name} ({member.name} alone)"
                yield Candidate(name, "predictions", entry.name, members=(member.name,))


def chosen_candidates(setting: Setting, wanted: Sequence[str] | None) -> list[Candidate]:
    """The candidates to run: all, or the wanted ones by name or by method, and the members.

    Members are always run: every comparison is with the best of them.

    Raises:
        UnknownName: Wanted names that match no candidate; all are listed.
    """
    every = all_candidates(setting)
    if wanted is None:
        return every
    known = sorted({c.name for c in every} | {c.method for c in every if c.method})
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UnknownName(
            f"There is no candidate {', '.join(map(repr, unknown))}."
            f"{did_you_mean(unknown[0], known)} There are: {', '.join(known)}."
        )
    return [c for c in every if c.family == "member" or {c.name, c.method} & set(wanted)]


def _ensembles(entry: Entry, setting: Setting) -> Iterator[Candidate]:
    names = tuple(member.name for member in setting.members)
    variants = [p for p in entry.contract["candidates"] if setting.task in entry.build(**p).tasks]
    for parameters in variants:
        yield Candidate(label(entry.name, parameters), "predictions", entry.name, parameters, names)
    if not variants:
        why_not = f"It is not made for {setting.task}."
        yield Candidate(entry.name, "predictions", entry.name, members=names, why_not=why_not)


def _merges(entry: Entry, setting: Setting) -> Iterator[Candidate]:
    members: range = entry.contract["members"]
    pair = members.stop == 3
    why_not = _missing_input(entry, setting)
    if members.stop == 2 and "base" not in entry.contract["needs"]:
        why_not = "It takes one model and gives that model."
    # Of two models the order is which end is which: at the middle, where it starts, it is all one.
    if entry.contract["ordered"] and not setting.ordered and not pair:
        why_not = (
            "It needs checkpoints of one run in order; "
            "say that the members are ordered (ordered: true), oldest first."
        )
    if members.stop == 2:
        yield from _one_by_one(entry, setting, "weights", entry.name, why_not)
        return
    for candidate in _by_group(entry, setting, "weights", entry.name, why_not):
        count = len(candidate.members)
        if not candidate.why_not and count not in members:
            takes = "exactly two" if pair else f"at least {members.start}"
            yield replace(candidate, why_not=f"It takes {takes} models, and there are {count}.")
            continue
        yield candidate
        if entry.name == "linear" and not candidate.why_not:
            by = setting.metric.name
            name = candidate.name.replace(entry.name, f"{entry.name} (by {by})", 1)
            yield replace(candidate, name=name, weights_by=by)
            name = candidate.name.replace(entry.name, ALIGNED, 1)
            yield replace(candidate, name=name, method="align", aligned=True)


def _soups(entry: Entry, setting: Setting) -> Iterator[Candidate]:
    if entry.name == "uniform":
        return  # The linear merge is the uniform soup; one row is enough.
    name, why_not = f"{entry.name} soup", _missing_input(entry, setting)
    if "base" in entry.contract["needs"]:
        yield from _one_by_one(entry, setting, "soup", name, why_not)
    else:
        yield from _by_group(entry, setting, "soup", name, why_not)


def _one_by_one(
    entry: Entry, setting: Setting, family: Family, name: str, why_not: str
) -> Iterator[Candidate]:
    """A candidate for every member, or one that says why there is none."""
    if why_not:
        yield Candidate(name, family, entry.name, why_not=why_not)
        return
    for member in setting.members:
        fits = setting.base is None or match([setting.base, member.checkpoint]).same
        yield Candidate(
            f"{name} (base to {member.name})",
            family,
            entry.name,
            members=(member.name,),
            why_not="" if fits else f"{member.name} does not have the tensors of the base.",
        )


def _by_group(
    entry: Entry, setting: Setting, family: Family, name: str, why_not: str
) -> Iterator[Candidate]:
    """A candidate for every architecture with two or more members, or why there is none."""
    groups = [group for group in setting.groups if len(group) > 1]
    if not groups and not why_not:
        architectures = ", ".join(f"{m.name} is a {m.architecture}" for m in setting.members)
        why_not = (
            f"No two members have the same tensors ({architectures}), so that no weights can be "
            "averaged. Their predictions can."
        )
    if why_not:
        yield Candidate(name, family, entry.name, why_not=why_not)
        return
    whole = len(groups) == 1 and len(groups[0]) == len(setting.members)
    for group in groups:
        names = tuple(member.name for member in group)
        suffix = "" if whole else f" of {', '.join(names)}"
        yield Candidate(name + suffix, family, entry.name, members=names)


def _missing_input(entry: Entry, setting: Setting) -> str:
    missing = set(entry.contract["needs"]) - {"validation"}
    if setting.base is not None:
        missing.discard("base")
    if "base" in missing:
        return "It needs the base that the members were fine-tuned from; none was given."
    if missing:
        return f"It needs {', '.join(sorted(missing))}, which a comparison does not make."
    return ""
