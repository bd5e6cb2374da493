"""What layers with parameters, products and attention do to the axes of tensors."""

from __future__ import annotations

from collections.abc import Mapping

from alloykit.alignment.axes import Axes, Axis, axis, broadcast, fixed, freeze, length, unify
from alloykit.alignment.calls import Call, Outline, Rule


def _linear(call: Call) -> Outline:
    given, weight = call.need("input", "weight")
    if len(weight) != 2:
        return None
    unify(given[-1], weight[1])
    for bias in call.need("bias"):
        unify(bias[0], weight[0])
    return (*given[:-1], weight[0])


def _embedding(call: Call) -> Outline:
    weight, indices = call.need("weight", "indices")
    # An index is a number: the rows that it points to cannot change places.
    freeze(weight[0])
    return (*indices, weight[1])


def _conv(call: Call) -> Outline:
    given, weight = call.need("input", "weight")
    channel = len(given) - len(weight) + 1
    group, into, out = _conv_parts(call.value("groups"), given[channel], weight[0])
    unify(given[channel], group + into)
    unify(weight[0], group + out)
    unify(weight[1], into)
    return _convolved(call, given, channel, weight, weight[0])


def _conv_transpose(call: Call) -> Outline:
    given, weight = call.need("input", "weight")
    channel = len(given) - len(weight) + 1
    group = axis(call.value("groups"))
    into = axis(length(given[channel]) // call.value("groups"))
    unify(given[channel], group + into)
    unify(weight[0], group + into)
    return _convolved(call, given, channel, weight, group + weight[1])


def _conv_parts(groups: int, given: Axis, out: Axis) -> tuple[Axis, Axis, Axis]:
    return axis(groups), axis(length(given) // groups), axis(length(out) // groups)


def _convolved(call: Call, given: Axes, channel: int, weight: Axes, out: Axis) -> Axes:
    for bias in call.need("bias"):
        unify(bias[0], out)
    freeze(*given[channel + 1 :], *weight[2:])
    return (*given[:channel], out, *fixed(call.shape[channel + 1 :]))


def _channel_norm(call: Call) -> Outline:
    (given,) = call.need("input")
    for each in call.need("weight", "bias", "running_mean", "running_var"):
        unify(given[1], each[0])
    return given


def _group_norm(call: Call) -> Outline:
    (given,) = call.need("input")
    groups = call.value("num_groups")
    unify(given[1], axis(groups) + axis(length(given[1]) // groups))
    for each in call.need("weight", "bias"):
        unify(given[1], each[0])
    return given


def _last_norm(call: Call) -> Outline:
    (given,) = call.need("input")
    for each in call.need("weight", "bias"):
        for own, other in zip(given[-len(each) :], each, strict=True):
            unify(own, other)
    return given


def _prelu(call: Call) -> Outline:
    given, weight = call.need("self", "weight")
    if length(weight[0]) > 1 and len(given) > 1:
        unify(given[1], weight[0])
    return given


def _matmul(call: Call) -> Outline:
    left, right = call.need("self", "other", "mat2", "vec", "tensor")
    unify(left[-1], right[-2] if len(right) > 1 else right[0])
    rows = left[-2:-1]
    columns = right[-1:] if len(right) > 1 else ()
    return broadcast([left[:-2], right[:-2]]) + rows + columns


def _addmm(call: Call) -> Outline:
    added, left, right = call.need("self", "mat1", "mat2", "batch1", "batch2")
    unify(left[-1], right[-2])
    batch = broadcast([left[:-2], right[:-2]])
    return broadcast([(*batch, left[-2], right[-1]), added])


def _einsum(call: Call) -> Outline:
    inputs, arrow, output = call.value("equation").replace(" ", "").partition("->")
    given = call.listed("tensors")
    terms = inputs.split(",")
    if not arrow or "." in inputs or [*map(len, terms)] != [*map(len, given)]:
        return None
    letters: dict[str, Axis] = {}
    for term, axes in zip(terms, given, strict=True):
        for letter, each in zip(term, axes, strict=True):
            if length(letters.setdefault(letter, each)) == 1:
                letters[letter] = each
            elif length(each) > 1:
                unify(letters[letter], each)
    return tuple(letters[letter] for letter in output)


def _attention(call: Call) -> Outline:
    query, key, value = call.need("query", "key", "value")
    unify(query[-1], key[-1])
    unify(key[-2], value[-2])
    if call.value("is_causal"):
        freeze(query[-2], key[-2])
    if call.value("enable_gqa") and length(query[-3]) != length(key[-3]):
        # Neighbouring heads of queries share one head of keys and values.
        unify(key[-3], value[-3])
        unify(query[-3], key[-3] + axis(length(query[-3]) // length(key[-3])))
        batch = (*broadcast([query[:-3], key[:-3], value[:-3]]), query[-3])
    else:
        batch = broadcast([query[:-2], key[:-2], value[:-2]])
    for mask in call.need("attn_mask"):
        broadcast([mask, (*batch, query[-2], key[-2])])
    return (*batch, query[-2], value[-1])


LAYER_RULES: Mapping[str, Rule] = {
    "linear": _linear,
    "embedding": _embedding,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **dict.fromkeys(("batch_norm", "instance_norm"), _channel_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), _last_norm),
    "prelu": _prelu,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
"""Name of an operation -> its rule."""
