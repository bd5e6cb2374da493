"""What a round does with each tensor of the model, and whether an update has that structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from alloykit.checkpoints.wording import counted, shown
from alloykit.errors import InvalidParameter, did_you_mean, listing
from alloykit.names import takes_maximum
from alloykit.numerics import compute_dtype, is_averaged
from alloykit.types import Checkpoint, TensorSpec

NAMED = 3
"""Names that the reason for leaving out an update gives before it says how many more."""


@dataclass(frozen=True)
class Structure:
    """The tensors of the server's model, by what is done with them.

    Attributes:
        specs: All of them, by name.
        averaged: Floating and complex ones that are aggregated; of tied names the first.
        agreed: Those that every client must have like the server, or are resolved by a rule:
            integers, booleans, and masks that hold infinities.
        tied: Name -> the first name of the same tensor.
    """

    specs: Mapping[str, TensorSpec]
    averaged: tuple[str, ...]
    agreed: tuple[str, ...]
    tied: Mapping[str, str]

    @property
    def sent(self) -> tuple[str, ...]:
        """The names that an update must have."""
        return (*self.averaged, *self.agreed)

    def wide(self, name: str) -> torch.dtype:
        """The real dtype that a tensor is computed in."""
        return compute_dtype(self.specs[name].dtype).to_real()

    def numel(self, name: str) -> int:
        """Number of real elements."""
        spec = self.specs[name]
        return spec.numel * (2 if spec.dtype.is_complex else 1)

    def shaped(self, name: str, flat: Tensor) -> Tensor:
        """The tensor of these real elements."""
        spec = self.specs[name]
        if spec.dtype.is_complex:
            return torch.view_as_complex(flat.reshape(*spec.shape, 2))
        return flat.reshape(spec.shape)


def structure_of(model: Checkpoint, keep: Sequence[str] = ()) -> Structure:
    """The structure of a model.

    Args:
        model: The server's, or one that stands for it.
        keep: Globs of names that are not aggregated.
    """
    specs = dict(model.specs())
    first: dict[str, str] = {}
    tied = {
        name: first[spec.place]
        for name, spec in specs.items()
        if first.setdefault(spec.place, name) != name
    }
    # One tensor under two names cannot be kept under one of them only.
    kept = {spec.place for n, spec in specs.items() if any(fnmatchcase(n, glob) for glob in keep)}
    sent = [n for n, spec in specs.items() if n not in tied and spec.place not in kept]
    averaged = [n for n in sent if is_averaged(specs[n].dtype) and not _has_infinities(model, n)]
    agreed = [name for name in sent if name not in set(averaged)]
    return Structure(specs, tuple(averaged), tuple(agreed), tied)


def refuse_globs(keep: Sequence[str], model: Checkpoint) -> None:
    """Refuse globs of names to keep that match nothing.

    Raises:
        InvalidParameter: With all of them.
    """
    names = list(model.specs())
    idle = [glob for glob in keep if not any(fnmatchcase(name, glob) for name in names)]
    if idle:
        lines = [f"{glob!r}.{did_you_mean(glob, names)}" for glob in idle]
        raise InvalidParameter(
            f"These names to keep match none of the model's {counted(len(names), 'tensor')}:\n"
            f"{listing(lines)}\nIt has {', '.join(map(shown, names[:NAMED]))}"
            f"{', …' if len(names) > NAMED else ''}."
        )


def common_structure(
    models: Mapping[str, Checkpoint], *, exact: bool
) -> tuple[Structure, dict[str, str]]:
    """The structure that most models have, and why the others do not fit it, by name.

    Most have the same names, shapes and dtypes, and most of those agree about the tensors that
    are never averaged. Of two that are as frequent the first counts.
    """
    forms = {name: _form(model) for name, model in models.items()}
    usual = Counter(forms.values()).most_common(1)[0][0]
    alike = [models[name] for name, form in forms.items() if form == usual]
    found, chosen = _agreed_by_most(alike)
    odd = {
        name: misfit(found, model, exact=exact, whose="the usual model")
        or disagreement(found, chosen, model, delta=False, whose="the usual model")
        for name, model in models.items()
    }
    return found, {name: reason for name, reason in odd.items() if reason}


def _agreed_by_most(alike: Sequence[Checkpoint]) -> tuple[Structure, Checkpoint]:
    """The structure, and the model, that more models agree with than with any other one."""
    best, most = None, 0
    for model in alike:
        structure = structure_of(model)
        agreeing = sum(not disagreement(structure, model, m, delta=False) for m in alike)
        if agreeing > most:
            best, most = (structure, model), agreeing
        if 2 * most > len(alike):
            break
    return best or (structure_of(alike[0]), alike[0])


def _form(model: Checkpoint) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    every = model.specs().items()
    return tuple(sorted(((n, spec.shape, spec.dtype) for n, spec in every), key=lambda t: t[0]))


def misfit(
    structure: Structure, update: Checkpoint, *, exact: bool, whose: str = "the server"
) -> str:
    """Why an update does not have the structure; "" where it has."""
    found = update.specs()
    missing = [name for name in structure.sent if name not in found]
    extra = [name for name in found if name not in structure.specs]
    wrong = [] if not missing else [f"{_named(missing)} missing"]
    wrong += [f"{_named(extra)} that {whose} does not have"] if extra else []
    wrong += [
        f"{shown(name)} is {_said(found[name], spec)}, {whose}'s {_said(spec, found[name])}"
        for name, spec in structure.specs.items()
        if name in structure.sent and name in found and _differs(found[name], spec, exact)
    ]
    more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return "; ".join(wrong[:NAMED]) + more


def disagreement(
    structure: Structure,
    server: Checkpoint,
    update: Checkpoint,
    *,
    delta: bool,
    whose: str = "the server",
) -> str:
    """Which tensor that is never averaged differs from the server's; "" where none does.

    Nor may a client hold two tensors where the server has one under two names.
    """
    for name in structure.agreed:
        if takes_maximum(name) or delta:
            continue
        own, theirs = server.read(name), update.read(name)
        if not torch.equal(own, theirs.to(own.dtype)):
            what = "masks with infinities" if is_averaged(own.dtype) else "integers"
            return f"{shown(name)} differs from {whose}'s, and {what} are never averaged"
    for name, first in structure.tied.items():
        if _are_apart(update, name, first):
            return f"{shown(name)} and {shown(first)} differ, which {whose} has as one tensor"
    return ""


def _are_apart(update: Checkpoint, name: str, first: str) -> bool:
    specs = update.specs()
    if name not in specs or first not in specs or specs[name].place == specs[first].place:
        return False
    one, other = update.read(name), update.read(first)
    return one.shape != other.shape or not torch.equal(one, other.to(one.dtype))


def resolved(
    structure: Structure, server: Checkpoint, updates: Sequence[tuple[Checkpoint, bool]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are not averaged: the server's, and of counters the largest.

    Args:
        structure: Of the server.
        server: Its model.
        updates: Those that count, and whether they hold changes.
    """
    for name in structure.agreed:
        own = server.read(name)
        if takes_maximum(name) and not is_averaged(own.dtype):
            values = [u.read(name) + (own if delta else 0) for u, delta in updates]
            # torch has no maximum of wide unsigned integers.
            own = torch.stack([v.long() for v in (*values, own)]).amax(0).to(own.dtype)
        yield name, own.clone()


def _has_infinities(model: Checkpoint, name: str) -> bool:
    values = model.read(name)
    if values.numel() == 0:
        return False
    real = torch.view_as_real(values) if values.is_complex() else values
    # Several times as fast as isinf; NaN shows as NaN, which is no infinity.
    low, high = torch.aminmax(real if real.dtype.itemsize > 1 else real.float())
    return bool(torch.isinf(low)) or bool(torch.isinf(high))


def _differs(found: TensorSpec, wanted: TensorSpec, exact: bool) -> bool:
    if found.shape != wanted.shape:
        return True
    if found.dtype == wanted.dtype:
        return False
    return exact or not (found.dtype.is_floating_point and wanted.dtype.is_floating_point)


def _said(spec: TensorSpec, other: TensorSpec) -> str:
    return str(list(spec.shape)) if spec.shape != other.shape else _short(spec.dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(shown(name) for name in names[:NAMED])
    more = ", …" if len(names) > NAMED else ""
    return f"{counted(len(names), 'tensor')} ({listed}{more})"
