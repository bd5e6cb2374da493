"""What a round does with each tensor of the model, and whether an update has that structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from alloykit.checkpoints.wording import counted, shown
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
    sent = [n for n in specs if n not in tied and not any(fnmatchcase(n, glob) for glob in keep)]
    averaged = [n for n in sent if is_averaged(specs[n].dtype) and not _has_infinities(model, n)]
    agreed = [name for name in sent if name not in set(averaged)]
    return Structure(specs, tuple(averaged), tuple(agreed), tied)


def common_structure(
    models: Mapping[str, Checkpoint], *, exact: bool
) -> tuple[Structure, dict[str, str]]:
    """The structure that most models have, and why the others do not fit it, by name.

    Of two that are as frequent the first counts.
    """
    forms = {name: _form(model) for name, model in models.items()}
    usual = Counter(forms.values()).most_common(1)[0][0]
    chosen = models[next(name for name, form in forms.items() if form == usual)]
    found = structure_of(chosen)
    odd = {
        name: misfit(found, model, exact=exact) or disagreement(found, chosen, model, delta=False)
        for name, model in models.items()
    }
    return found, {name: reason for name, reason in odd.items() if reason}


def _form(model: Checkpoint) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    every = model.specs().items()
    return tuple(sorted(((n, spec.shape, spec.dtype) for n, spec in every), key=lambda t: t[0]))


def misfit(structure: Structure, update: Checkpoint, *, exact: bool) -> str:
    """Why an update does not have the structure; "" where it has."""
    found = update.specs()
    missing = [name for name in structure.sent if name not in found]
    extra = [name for name in found if name not in structure.specs]
    wrong = [] if not missing else [f"{_named(missing)} missing"]
    wrong += [f"{_named(extra)} that the server does not know"] if extra else []
    wrong += [
        f"{shown(name)} is {_said(found[name], spec)}, the server's {_said(spec, found[name])}"
        for name, spec in structure.specs.items()
        if name in structure.sent and name in found and _differs(found[name], spec, exact)
    ]
    more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return "; ".join(wrong[:NAMED]) + more


def disagreement(
    structure: Structure, server: Checkpoint, update: Checkpoint, *, delta: bool
) -> str:
    """Which tensor that is never averaged differs from the server's; "" where none does."""
    for name in structure.agreed:
        if takes_maximum(name) or delta:
            continue
        own, theirs = server.read(name), update.read(name)
        if not torch.equal(own, theirs.to(own.dtype)):
            what = "masks with infinities" if is_averaged(own.dtype) else "integers"
            return f"{shown(name)} differs from the server's, and {what} are never averaged"
    return ""


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
