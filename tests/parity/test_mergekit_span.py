"""mergekit 0.1.5 and this project agree wherever both have a method in the span of the members.

Deliberate differences have a test of their own here, beside what ``compat`` does about them.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mergekit.merge_methods.api import merge_tensors
from torch import Tensor

from alloykit.execution.scanning import merge_whole
from alloykit.registry import merge_methods
from alloykit.types import TensorGroup

SHAPES = [(), (1,), (7,), (5, 8), (40, 33), (70, 100), (6, 4, 3, 3)]
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**31)
spreads = st.sampled_from([0.01, 0.3, 3.0])
positive = st.floats(0.05, 3.0)
switch = st.booleans()


def drawn(shape, seed: int, count: int, spread: float = 0.3) -> list[Tensor]:
    """A base and members at that distance from it, relative to its length."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [base] + [base + spread * torch.randn(shape, generator=generator) for _ in range(count)]


def ours(name, tensors, base=None, weights=None, **parameters) -> Tensor:
    method = merge_methods.build(name, **parameters)
    count = len(tensors)
    if weights is None:
        weights = [1.0 if method.weights == "factors" else 1.0 / count] * count
    elif method.weights == "shares":
        weights = [weight / sum(weights) for weight in weights]
    names = tuple(f"m{i}" for i in range(count))
    return merge_whole(method, TensorGroup("w", names, tuple(tensors), tuple(weights), base=base))


def theirs(name, tensors, base=None, **parameters) -> Tensor:
    every = [*([] if base is None else [base]), *tensors]
    return merge_tensors(every, name, parameters=parameters, base_index=None if base is None else 0)


def assert_same(one: Tensor, other: Tensor, size: float = 1.0) -> None:
    assert one.dtype == other.dtype == torch.float32
    assert one.shape == other.shape
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * size)


def size_of(tensors) -> float:
    return max(1.0, *(float(tensor.abs().amax()) for tensor in tensors))


@given(shapes, seeds, st.lists(positive, min_size=1, max_size=5), switch)
def test_linear(shape, seed, weights, normalize):
    tensors = drawn(shape, seed, len(weights))[1:]
    found = ours("linear", tensors, weights=weights, normalize=normalize)
    expected = theirs("linear", tensors, weight=weights, normalize=normalize)
    assert_same(found, expected, size_of(tensors) * max(1.0, sum(weights)))


@given(shapes, seeds, spreads, st.floats(0.0, 1.0), st.sampled_from(["mergekit"]))
def test_slerp(shape, seed, spread, t, compat):
    first, second = drawn(shape, seed, 1, spread)
    cosine = torch.cosine_similarity(first.flatten().double(), second.flatten().double(), 0)
    assume(abs(abs(cosine) - 0.9995) > 1e-5)
    found = ours("slerp", [first, second], t=t, compat=compat)
    assert_same(found, theirs("slerp", [second], first, t=t), size_of([first, second]))


@given(shapes, seeds, spreads, positive, positive, switch, switch, switch)
def test_nuslerp(shape, seed, spread, first, second, flatten, row_wise, with_base):
    base, *tensors = drawn(shape, seed, 2, spread)
    deltas = [t - base for t in tensors] if with_base else tensors
    assume(not nearly_opposite(deltas, flatten, row_wise))
    origin = base if with_base else None
    found = ours("nuslerp", tensors, origin, [first, second], flatten=flatten, row_wise=row_wise)
    expected = theirs(
        "nuslerp", tensors, origin,
        weight=[first, second], nuslerp_flatten=flatten, nuslerp_row_wise=row_wise,
    )  # fmt: skip
    assert_same(found, expected, size_of([base, *tensors]))


def nearly_opposite(vectors, flatten: bool, row_wise: bool) -> bool:
    """Where coefficients grow, and with them the rounding of mergekit's angles.

    Opposite vectors of one element are on a line, which both know.
    """
    one, two = (v.double() for v in vectors)
    if flatten or one.dim() < 2:
        one, two = one.reshape(1, -1), two.reshape(1, -1)
    elif row_wise:
        one, two = one.transpose(0, -1), two.transpose(0, -1)
    cosines = torch.cosine_similarity(one, two, -1)
    return one.shape[-1] > 1 and bool((cosines < -0.98).any())


@given(shapes, seeds, spreads, st.lists(positive, min_size=1, max_size=5), switch, switch)
def test_multislerp(shape, seed, spread, weights, normalize, with_base):
    base, *tensors = drawn(shape, seed, len(weights), spread)
    origin = base if with_base else None
    deltas = [t - base for t in tensors] if with_base else tensors
    # Where directions nearly balance out, mergekit's own rounding grows without bound.
    units = [d.double() / d.double().norm() for d in deltas]
    mean = sum(w * u for w, u in zip(weights, units, strict=True)) / sum(weights)
    assume(float(mean.norm()) > 0.2)
    found = ours(
        "multislerp", tensors, origin, weights, normalize_weights=normalize, compat="mergekit"
    )
    expected = theirs(
        "multislerp", tensors, origin,
        weight=weights, normalize_weights=normalize,
    )  # fmt: skip
    assert_same(found, expected, size_of([base, *tensors]) * max(1.0, sum(weights)))


@given(shapes, seeds, spreads, st.integers(1, 5), st.sampled_from([0, 1, 10]))
def test_karcher(shape, seed, spread, count, max_iter):
    tensors = drawn(shape, seed, count, spread)[1:]
    units = [t.double() / t.double().norm() for t in tensors]
    assume(float((sum(units) / count).norm()) > 0.2)
    # mergekit stops one step earlier or later where its float32 step is near the tolerance.
    found = ours("karcher", tensors, max_iter=max_iter, tol=1e-7, compat="mergekit")
    expected = theirs("karcher", tensors, max_iter=max_iter, tol=1e-7)
    assert_same(found, expected, 2 * size_of(tensors))


@given(shapes, seeds, spreads, st.integers(2, 5), switch)
def test_model_stock(shape, seed, spread, count, filter_wise):
    base, *tensors = drawn(shape, seed, count, spread)
    found = ours("model_stock", tensors, base, filter_wise=filter_wise, compat="mergekit")
    expected = theirs("model_stock", tensors, base, filter_wise=filter_wise)
    # Near a vanishing denominator the ratio, and mergekit's rounding of it, have no bound.
    far = float((expected - base).abs().amax())
    assume(far <= 10 * spread)
    assert_same(found, expected, size_of([base, *tensors]))


@given(shapes, seeds, spreads, st.floats(1e-6, 2.0))
def test_nearswap(shape, seed, spread, t):
    base, tensor = drawn(shape, seed, 1, spread)
    assert_same(ours("nearswap", [tensor], base, t=t), theirs("nearswap", [tensor], base, t=t),
                size_of([base, tensor]))  # fmt: skip


@given(shapes, seeds, st.floats(-2.0, 2.0))
def test_passthrough(shape, seed, scale):
    (tensor,) = drawn(shape, seed, 0)
    assert torch.equal(ours("passthrough", [tensor], scale=scale),
                       theirs("passthrough", [tensor], scale=[scale]))  # fmt: skip
    assert torch.equal(ours("passthrough", [tensor]), theirs("passthrough", [tensor]))


@given(shapes, seeds, spreads, st.floats(-1.5, 1.5),
       st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=4), switch)  # fmt: skip
def test_task_arithmetic(shape, seed, spread, scale, weights, normalize):
    assume(not normalize or abs(sum(weights)) > 0.1)
    base, *tensors = drawn(shape, seed, len(weights), spread)
    found = ours("task_arithmetic", tensors, base, weights, scale=scale, normalize=normalize)
    expected = theirs(
        "task_arithmetic", tensors, base,
        weight=weights, normalize=normalize, **{"lambda": scale},
    )  # fmt: skip
    steps = sum(map(abs, weights)) * (1 / abs(sum(weights)) if normalize else 1)
    assert_same(found, expected, size_of([base, *tensors]) * max(1.0, steps))


BF16 = [
    ("linear", False, {}, {"weight": 1.0}),
    ("slerp", False, {"t": 0.3}, {"t": 0.3}),
    ("nuslerp", True, {}, {"weight": [1.0, 1.0]}),
    ("nuslerp", True, {"flatten": False}, {"weight": [1.0, 1.0], "nuslerp_flatten": False}),
    ("multislerp", True, {}, {"weight": [1.0, 1.0, 1.0]}),
    ("karcher", False, {}, {}),
    ("model_stock", True, {}, {}),
    ("model_stock", True, {"filter_wise": True}, {"filter_wise": True}),
    ("nearswap", True, {"t": 0.001}, {"t": 0.001}),
    ("task_arithmetic", True, {"scale": 0.4}, {"weight": [1.0, 1.0, 1.0], "lambda": 0.4}),
]


@pytest.mark.parametrize(("name", "with_base", "own", "other"), BF16)
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_bfloat16_is_no_further_from_float64_than_theirs(name, with_base, own, other, spread):
    count = {"slerp": 2, "nuslerp": 2, "nearswap": 1}.get(name, 3)
    base, *tensors = (t.bfloat16() for t in drawn((200, 100), 5, count, spread))
    origin = base if with_base else None

    def merged(dtype):
        wide = None if origin is None else origin.to(dtype)
        return ours(name, [t.to(dtype) for t in tensors], wide, **own)

    exact = merged(torch.float64)
    found = merged(torch.float32).bfloat16().double()
    if name == "slerp":
        reference = theirs(name, tensors[1:], tensors[0], **other)
    else:
        reference = theirs(name, tensors, origin, **other)
    assert reference.dtype == torch.bfloat16
    error, error_there = ((x.double() - exact).square().mean() for x in (found, reference))
    assert error <= error_there * 1.0001
    rounding = (exact.bfloat16().double() - exact).square().mean()
    assert error <= rounding * 1.001


def test_a_tensor_of_zeros_is_at_a_right_angle_there():
    zero, one = torch.zeros(3), torch.tensor([1.0, 2.0, 2.0])
    reference = theirs("slerp", [one], zero, t=0.5)
    assert_same(ours("slerp", [zero, one], t=0.5, compat="mergekit"), reference)
    torch.testing.assert_close(reference, one * 0.5**0.5)
    torch.testing.assert_close(ours("slerp", [zero, one], t=0.5), one / 2)


@pytest.mark.parametrize("flatten", [True, False])
def test_an_unchanged_tensor_is_at_a_right_angle_there(flatten):
    base, tuned = torch.ones(2, 3), torch.tensor([[2.0, 3.0, 3.0], [1.0, 1.0, 5.0]])
    reference = theirs("nuslerp", [base, tuned], base, weight=[1.0, 1.0],
                       nuslerp_flatten=flatten)  # fmt: skip
    found = ours("nuslerp", [base, tuned], base, flatten=flatten, compat="mergekit")
    assert_same(found, reference, 5.0)
    torch.testing.assert_close(reference - base, (tuned - base) * 0.5**0.5)
    torch.testing.assert_close(
        ours("nuslerp", [base, tuned], base, flatten=flatten), (base + tuned) / 2
    )


def test_short_tensors_vanish_in_their_karcher_mean():
    tensors = [torch.tensor([3e-6]), torch.tensor([5e-6])]
    assert theirs("karcher", tensors).item() == 0.0
    assert ours("karcher", tensors, compat="mergekit").item() == 0.0
    assert ours("karcher", tensors).item() == pytest.approx(4e-6)


def test_unchanged_tensors_fail_in_their_multislerp():
    base = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="sum of the input tensors is zero"):
        theirs("multislerp", [base, base, base], base, weight=[1.0, 1.0, 1.0])
    for compat in (None, "mergekit"):
        assert torch.equal(ours("multislerp", [base, base, base], base, compat=compat), base)


def test_opposed_fine_tunes_go_past_the_base_in_their_model_stock():
    base = torch.zeros(2)
    tensors = [torch.tensor([1.0, 0.5]), torch.tensor([-0.5, 1.0]) - 0.3]
    reference = theirs("model_stock", tensors, base)
    assert_same(ours("model_stock", tensors, base, compat="mergekit"), reference)
    mean = sum(tensors) / 2
    assert float(reference @ mean) < 0.0
    assert torch.equal(ours("model_stock", tensors, base), base)


def test_small_task_vectors_are_pulled_to_the_base_in_their_model_stock():
    tensors = [1e-4 * t for t in drawn((10,), 3, 2, 0.1)[1:]]
    base = torch.zeros(10)
    reference = theirs("model_stock", tensors, base)
    torch.testing.assert_close(
        ours("model_stock", tensors, base, compat="mergekit"), reference, rtol=1e-5, atol=0
    )
    large = ours("model_stock", [1e4 * t for t in tensors], base)
    torch.testing.assert_close(ours("model_stock", tensors, base) * 1e4, large)
    assert float(reference.norm()) < 0.3 * float(large.norm()) / 1e4


def test_filters_are_lines_of_the_last_dimension_in_their_model_stock():
    base, *tensors = drawn((4, 3, 3, 3), 0, 2)
    tensors = [tensor + 1.0 for tensor in tensors]
    reference = theirs("model_stock", tensors, base, filter_wise=True)
    flat = [t.reshape(36, 3) for t in (base, *tensors)]
    lines = ours("model_stock", flat[1:], flat[0], filter_wise=True, compat="mergekit")
    assert_same(lines.reshape(base.shape), reference, 5.0)
    slices = ours("model_stock", tensors, base, filter_wise=True)
    assert float((slices - reference).abs().amax()) > 0.01


def test_differences_below_a_millionth_count_as_one_in_their_nearswap():
    base, tensor = torch.zeros(1), torch.full((1,), 5e-7)
    assert theirs("nearswap", [tensor], base, t=4e-7).item() == pytest.approx(2e-7)
    assert ours("nearswap", [tensor], base, t=4e-7).item() == pytest.approx(4e-7)
