"""What reshaping, reordering, cutting and joining do to the axes of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alloykit.alignment.axes import (
    Axes,
    Axis,
    axis,
    broadcast,
    fixed,
    freeze,
    length,
    regrouped,
    unify,
)
from alloykit.alignment.calls import Call, Outline, Rule


def _reshape(call: Call) -> Outline:
    return regrouped(call.need("self")[0], call.shape)


def _permute(call: Call) -> Outline:
    (given,) = call.need("self")
    return tuple(given[dim] for dim in call.value("dims"))


def _transpose(call: Call) -> Outline:
    given = list(call.need("self")[0])
    names = ("axis0", "axis1") if "axis0" in call.arguments else ("dim0", "dim1")
    one, other = map(call.value, names)
    given[one], given[other] = given[other], given[one]
    return tuple(given)


def _movedim(call: Call) -> Outline:
    (given,) = call.need("self")
    moves = [
        [dim % len(given) for dim in (dims if isinstance(dims, list) else [dims])]
        for dims in (call.value("source"), call.value("destination"))
    ]
    rest = iter(dim for dim in range(len(given)) if dim not in moves[0])
    goes = dict(zip(moves[1], moves[0], strict=True))
    return tuple(given[goes[dim] if dim in goes else next(rest)] for dim in range(len(given)))


def _reverse(call: Call) -> Outline:
    return call.need("self")[0][::-1]


def _matrix_transpose(call: Call) -> Outline:
    (given,) = call.need("self")
    return (*given[:-2], given[-1], given[-2])


def _expand(call: Call) -> Outline:
    # What is repeated is the same everywhere, so that its copies may change places.
    (given,) = call.need("self")
    shape = call.shape
    given = ((),) * (len(shape) - len(given)) + given
    return tuple(
        old if length(old) == size else axis(size) for old, size in zip(given, shape, strict=True)
    )


def _repeat(call: Call) -> Outline:
    (given,) = call.need("self")
    repeats = call.value("repeats" if "repeats" in call.arguments else "dims")
    repeats = [1] * (len(given) - len(repeats)) + list(repeats)
    given = ((),) * (len(repeats) - len(given)) + given
    return tuple(axis(count) + old for count, old in zip(repeats, given, strict=True))


def _repeat_interleave(call: Call) -> Outline:
    (given,) = call.need("self")
    dim, count = call.value("dim"), call.value("repeats")
    if dim is None or not isinstance(count, int):
        return None
    return _with(given, dim, given[dim] + axis(count))


def _uniform(call: Call) -> Outline:
    # Every entry is the same: any order is as good.
    return tuple(axis(size) for size in call.shape)


def _select(call: Call) -> Outline:
    (given,) = call.need("self")
    dim = call.value("dim") % len(given)
    freeze(given[dim])
    return given[:dim] + given[dim + 1 :]


def _slice(call: Call) -> Outline:
    (given,) = call.need("self")
    dim, size = call.value("dim") % len(given), length(given[call.value("dim")])
    taken = call.shape[dim]
    if taken == size:
        return given
    start = call.value("start") or 0
    start += size if start < 0 else 0
    if call.value("step") == 1 and taken and start % taken == 0 and size % taken == 0:
        return _with(given, dim, _halved(given[dim], size // taken))
    return None if taken == 0 else _with(given, dim, _cut(given[dim], taken))


def _narrow(call: Call) -> Outline:
    (given,) = call.need("self")
    dim = call.value("dim") % len(given)
    taken = call.shape[dim]
    return given if taken == length(given[dim]) else _with(given, dim, _cut(given[dim], taken))


def _index(call: Call) -> Outline:
    """Picking by tables of numbers: where they apply the order stays, elsewhere it is free."""
    (given,) = call.need("self")
    tables = [*call.value("indices")]
    tables += [None] * (len(given) - len(tables))
    picked = [dim for dim, table in enumerate(tables) if table is not None]
    freeze(*(given[dim] for dim in picked))
    for axes in call.listed("indices"):
        freeze(*axes)
    left = [given[dim] for dim in range(len(given)) if dim not in picked]
    # What is picked from neighbouring dimensions takes their place, and comes first otherwise.
    start = picked[0] if picked == list(range(picked[0], picked[-1] + 1)) else 0
    count = len(call.shape) - len(left)
    new = fixed(call.shape[start : start + count])
    return (*left[:start], *new, *left[start:])


def _pixel_shuffle(call: Call) -> Outline:
    (given,) = call.need("self")
    square = call.value("upscale_factor") ** 2
    channels = axis(length(given[-3]) // square)
    unify(given[-3], channels + axis(square, frozen=True))
    freeze(*given[-2:])
    return (*given[:-3], channels, *fixed(call.shape[-2:]))


def _pieces(call: Call) -> Outline:
    (given,) = call.need("self")
    dim = call.value("dim") % len(given)
    sizes = [shape[dim] for shape in call.shapes]
    if len(set(sizes)) == 1:
        piece = _halved(given[dim], len(sizes))
        return [_with(given, dim, piece) for _ in sizes]
    return [_with(given, dim, _cut(given[dim], size)) for size in sizes]


def _unbind(call: Call) -> Outline:
    (given,) = call.need("self")
    dim = call.value("dim") % len(given)
    freeze(given[dim])
    return [given[:dim] + given[dim + 1 :] for _ in call.shapes]


def _glu(call: Call) -> Outline:
    (given,) = call.need("self")
    dim = call.value("dim") % len(given)
    return _with(given, dim, _halved(given[dim], 2))


def _cat(call: Call) -> Outline:
    # Caches of transformers begin as empty tensors of one dimension.
    given = [axes for axes in call.listed("tensors") if [*map(length, axes)] != [0]]
    if len({len(axes) for axes in given}) != 1:
        return None
    dim = call.value("dim") % len(given[0])
    common = broadcast([_with(axes, dim, ()) for axes in given])
    sizes = [length(axes[dim]) for axes in given]
    if len(set(sizes)) == 1:
        # Pieces of one length: a product of "which piece", which stays, and "where in it".
        for axes in given[1:]:
            unify(given[0][dim], axes[dim])
        return _with(common, dim, axis(len(sizes), frozen=True) + given[0][dim])
    freeze(*(axes[dim] for axes in given))
    return _with(common, dim, axis(sum(sizes), frozen=True))


def _stack(call: Call) -> Outline:
    given = call.listed("tensors")
    dim = call.value("dim") % (len(given[0]) + 1)
    common = broadcast(given)
    return (*common[:dim], axis(len(given), frozen=True), *common[dim:])


def _pad(call: Call) -> Outline:
    (given,) = call.need("self")
    amounts = call.value("pad")
    # The amounts go from the last dimension to the first, two for each.
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    untouched = len(given) - len(pairs)
    padded = [pairs[-1 - place] for place in range(len(pairs))]
    sizes = call.shape[untouched:]
    return given[:untouched] + tuple(
        _cut(old, size) if any(pair) else old
        for old, size, pair in zip(given[untouched:], sizes, padded, strict=True)
    )


def _with(axes: Sequence[Axis], dim: int, new: Axis) -> Axes:
    found = list(axes)
    found[dim] = new
    return tuple(found)


def _halved(whole: Axis, count: int) -> Axis:
    """One of ``count`` equal pieces of an axis; which piece is which stays."""
    piece = axis(length(whole) // count)
    unify(whole, axis(count, frozen=True) + piece)
    return piece


def _cut(whole: Axis, size: int) -> Axis:
    """Some entries of an axis that must stay as it is."""
    freeze(whole)
    return axis(size, frozen=True)


SHAPE_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "_unsafe_view",
         "view_as", "reshape_as"),
        _reshape,
    ),
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    **dict.fromkeys(("t", "numpy_T"), _reverse),
    **dict.fromkeys(("mT", "adjoint", "mH"), _matrix_transpose),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys(
        ("zeros", "ones", "full", "scalar_tensor", "zeros_like", "ones_like", "full_like",
         "new_zeros", "new_ones", "new_full"),
        _uniform,
    ),
    "select": _select,
    "slice": _slice,
    "narrow": _narrow,
    "index": _index,
    "pixel_shuffle": _pixel_shuffle,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _pieces),
    "unbind": _unbind,
    "glu": _glu,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
}  # fmt: skip
"""Name of an operation -> its rule."""
