"""What every operation of a traced model does to the axes of its tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from alloykit.alignment.axes import atoms, broadcast, fixed, freeze, length
from alloykit.alignment.calls import Call, Outline, Rule
from alloykit.alignment.layer_rules import LAYER_RULES
from alloykit.alignment.shape_rules import SHAPE_RULES


def followed(node: fx.Node, known: Mapping[fx.Node, Outline]) -> tuple[Outline, str]:
    """The axes of what a call gives, and the operation's name where not knowing it costs freedom.

    An operation without a rule, or used in a way that its rule does not cover, may do anything:
    all axes of what it takes, and of what it gives, are frozen.
    """
    if node.target is operator.getitem:
        several = known[node.args[0]]  # type: ignore[index]
        return (several[node.args[1]] if several else None), ""  # type: ignore[index,return-value]
    if not isinstance(node.target, torch._ops.OpOverload):
        return _frozen(Call(node, {}, known), str(node.target))
    name = node.target._schema.name.removeprefix("aten::")
    if name.startswith(CHECKS):
        return None, ""
    call = Call.of(node, known)
    found = _by_rule(_rule(name, node.target), call)
    return _frozen(call, name) if found is None else (found, "")


def _by_rule(rule: Rule | None, call: Call) -> Outline:
    """What the rule says, or None where there is none, or none for this use of the operation."""
    if rule is None:
        return None
    try:
        found = rule(call)
    except (ValueError, IndexError, TypeError):
        # Rules are written for what operations usually take; the unusual is frozen.
        return None
    return found if _shapes(found) == call.shapes else None


def _rule(name: str, target: torch._ops.OpOverload) -> Rule | None:
    if torch.Tag.pointwise in target.tags:
        return _elementwise
    # What works in place has the name of what does not, and an underscore.
    return RULES.get(name.removesuffix("_"))


def _frozen(call: Call, name: str) -> tuple[Outline, str]:
    axes = [axis for axes in call.tensors() for axis in axes]
    free = any(not atom.frozen for axis in axes for atom in atoms(axis))
    freeze(*axes)
    outlines = [fixed(shape) for shape in call.shapes]
    several = isinstance(call.node.meta.get("val"), list | tuple)
    return (outlines if several else outlines[0] if outlines else None), name if free else ""


def _shapes(found: Outline) -> list[tuple[int, ...]]:
    several = found if isinstance(found, list) else [found or ()]
    return [tuple(map(length, axes)) for axes in several]


def _elementwise(call: Call) -> Outline:
    return broadcast(list(call.tensors()))


def _same(call: Call) -> Outline:
    return next(call.tensors())


def _reduced(call: Call) -> Outline:
    given = next(call.tensors())
    dims = call.value("dim")
    every = range(len(given)) if dims in (None, []) else dims if isinstance(dims, list) else [dims]
    gone = {dim % len(given) for dim in every} if given else set()
    if call.value("keepdim"):
        return tuple(() if dim in gone else axis for dim, axis in enumerate(given))
    return tuple(axis for dim, axis in enumerate(given) if dim not in gone)


def _extreme(call: Call) -> Outline:
    """The largest values, with their positions where one dimension is asked for."""
    dim = call.value("dim")
    if dim is None:
        return _reduced(call)
    freeze(next(call.tensors())[dim])
    found = _reduced(call)
    return [found, found] if isinstance(found, tuple) else None


def _position(call: Call) -> Outline:
    """Where the largest value is, which says something only while the order stays."""
    dim = call.value("dim")
    freeze(*(next(call.tensors()) if dim is None else [next(call.tensors())[dim]]))
    return _reduced(call)


def _along(call: Call) -> Outline:
    """What goes along one dimension in its order: sums so far, sorting, turning around."""
    given = next(call.tensors())
    dims = call.value("dim") if "dim" in call.arguments else call.value("dims")
    if dims in (None, []):
        return None
    freeze(*(given[dim] for dim in (dims if isinstance(dims, list) else [dims])))
    return [given] * len(call.shapes) if len(call.shapes) > 1 else given


def _triangle(call: Call) -> Outline:
    given = next(call.tensors())
    freeze(*given[-2:])
    return given


def _spatial(dimensions: int) -> Rule:
    def rule(call: Call) -> Outline:
        """Pooling and interpolation mix neighbours along the last dimensions."""
        given = next(call.tensors())
        freeze(*given[-dimensions:])
        rest = given[:-dimensions]
        found = [rest + fixed(shape[len(rest) :]) for shape in call.shapes]
        return found if len(found) > 1 else found[0]

    return rule


CHECKS = ("_assert", "sym_")
"""How operations are named that look at tensors or sizes and change nothing."""

POOLED = (
    "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest",
    "_upsample_nearest_exact", "reflection_pad", "replication_pad",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **SHAPE_RULES,
    **LAYER_RULES,
    **dict.fromkeys(("hardswish", "log_sigmoid", "where", "copy"), _elementwise),
    **dict.fromkeys(
        ("to", "_to_copy", "contiguous", "type_as", "detach", "detach_copy", "alias", "dropout",
         "feature_dropout", "alpha_dropout", "softmax", "log_softmax", "_softmax", "_log_softmax",
         "_safe_softmax", "lift_fresh_copy", "lift_fresh"),
        _same,
    ),
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "prod", "var", "std", "logsumexp", "norm", "any", "all",
         "linalg_vector_norm"),
        _reduced,
    ),
    **dict.fromkeys(("max", "min"), _extreme),
    **dict.fromkeys(("argmax", "argmin"), _position),
    **dict.fromkeys(("cumsum", "cumprod", "flip", "roll", "sort", "argsort"), _along),
    **dict.fromkeys(("tril", "triu"), _triangle),
    **{f"{kind}{size}d": _spatial(size) for kind in POOLED for size in (1, 2, 3)},
    **dict.fromkeys(("upsample_bilinear2d", "upsample_bicubic2d"), _spatial(2)),
}  # fmt: skip
"""Name of an operation -> its rule; those that torch marks as elementwise need none."""
