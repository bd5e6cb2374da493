"""mergekit 0.1.5 and this project agree wherever both have a method in the span of the members.

Deliberate differences have a test of their own here, beside what ``compat`` does about them.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from mergekit.merge_methods.api import merge_tensors
from torch import Tensor

from alloykit.execution.scanning import merge_whole
from alloykit.registry import merge_methods
from alloykit.types import TensorGroup

SHAPES = [(), (1,), (7,), (5, 8), (40, 33), (70, 100), (6, 4, 3, 3)]
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**31)
spreads = st.sampled_from([0.01, 0.025, 0.04, 0.3, 3.0])
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


def assert_parity(name, tensors, base=None, weights=None, *, own, other, size: float = 1.0) -> None:
    """Our float32 is within 1e-6 of their formula, and our float64 has its digits.

    Their formula is run in float64: in float32 its own rounding is up to ten times that much.
    """
    wide = [tensor.double() for tensor in tensors]
    wide_base = None if base is None else base.double()
    inputs = [*tensors, *([] if base is None else [base])]
    limit = size * max(1.0, *(float(tensor.abs().amax()) for tensor in inputs))
    expected = other(wide, wide_base)
    found = ours(name, tensors, base, weights, **own)
    assert (found.dtype, found.shape) == (torch.float32, expected.shape)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 * limit)
    exact = ours(name, wide, wide_base, weights, **own)
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-10 * limit)


@given(shapes, seeds, st.lists(positive, min_size=1, max_size=5), switch)
def test_linear(shape, seed, weights, normalize):
    assert_parity(
        "linear", drawn(shape, seed, len(weights))[1:], weights=weights,
        own={"normalize": normalize},
        other=lambda tensors, _: theirs("linear", tensors, weight=weights, normalize=normalize),
        size=max(1.0, sum(weights)),
    )  # fmt: skip


@given(shapes, seeds, spreads, st.floats(0.0, 1.0), st.sampled_from([None, "mergekit"]))
@example((40, 33), 0, 0.025, 0.5, None)
@example((40, 33), 0, 0.04, 0.5, None)
def test_slerp(shape, seed, spread, t, compat):
    first, second = drawn(shape, seed, 1, spread)
    cosine = torch.cosine_similarity(first.flatten().double(), second.flatten().double(), 0)
    assume(abs(abs(cosine) - 0.9995) > 1e-6)
    assert_parity(
        "slerp", [first, second], own={"t": t, "compat": compat},
        other=lambda tensors, _: theirs("slerp", tensors[1:], tensors[0], t=t),
    )  # fmt: skip


@given(shapes, seeds, spreads, positive, positive, switch, switch, switch)
def test_nuslerp(shape, seed, spread, first, second, flatten, row_wise, with_base):
    base, *tensors = drawn(shape, seed, 2, spread)
    assume(not opposite([t - base for t in tensors] if with_base else tensors, flatten, row_wise))
    assert_parity(
        "nuslerp", tensors, base if with_base else None, [first, second],
        own={"flatten": flatten, "row_wise": row_wise},
        other=lambda tensors, base: theirs(
            "nuslerp", tensors, base, weight=[first, second],
            nuslerp_flatten=flatten, nuslerp_row_wise=row_wise,
        ),
    )  # fmt: skip


def opposite(vectors, flatten: bool, row_wise: bool) -> bool:
    """Whether some are nearly opposite, where rounding has no bound.

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
    assume(not balanced([t - base for t in tensors] if with_base else tensors, weights))
    assert_parity(
        "multislerp", tensors, base if with_base else None, weights,
        own={"normalize_weights": normalize, "compat": "mergekit"},
        other=lambda tensors, base: theirs(
            "multislerp", tensors, base, weight=weights, normalize_weights=normalize
        ),
        size=max(1.0, sum(weights)),
    )  # fmt: skip


def balanced(vectors, weights) -> bool:
    """Whether directions nearly balance out, where rounding has no bound."""
    units = [v.double() / v.double().norm() for v in vectors]
    mean = sum(w * u for w, u in zip(weights, units, strict=True)) / sum(weights)
    return float(mean.norm()) < 0.2


@given(shapes, seeds, spreads, st.integers(1, 5), st.sampled_from([{}, {"max_iter": 1}]))
def test_karcher(shape, seed, spread, count, given):
    tensors = drawn(shape, seed, count, spread)[1:]
    assume(not balanced(tensors, [1.0] * count))
    assert_parity(
        "karcher", tensors, own={**given, "compat": "mergekit"},
        other=lambda tensors, _: theirs("karcher", tensors, **given), size=2.0,
    )  # fmt: skip


@given(shapes, seeds, spreads, st.integers(2, 5), switch)
def test_model_stock(shape, seed, spread, count, filter_wise):
    base, *tensors = drawn(shape, seed, count, spread)
    reference = theirs("model_stock", tensors, base, filter_wise=filter_wise)
    # Near a vanishing denominator the step has no bound, nor has its rounding.
    stretch = float((reference - base).abs().amax()) / spread
    assume(stretch < 10.0)
    assert_parity(
        "model_stock", tensors, base, own={"filter_wise": filter_wise, "compat": "mergekit"},
        other=lambda tensors, base: theirs("model_stock", tensors, base, filter_wise=filter_wise),
        size=max(1.0, stretch**2),
    )  # fmt: skip


@given(shapes, seeds, spreads, st.floats(1e-6, 2.0))
def test_nearswap(shape, seed, spread, t):
    base, tensor = drawn(shape, seed, 1, spread)
    assert_parity(
        "nearswap", [tensor], base, own={"t": t},
        other=lambda tensors, base: theirs("nearswap", tensors, base, t=t),
    )  # fmt: skip


@given(shapes, seeds, st.floats(-2.0, 2.0))
def test_passthrough(shape, seed, scale):
    (tensor,) = drawn(shape, seed, 0)
    found = ours("passthrough", [tensor], scale=scale)
    assert torch.equal(found, theirs("passthrough", [tensor], scale=[scale]))
    assert torch.equal(ours("passthrough", [tensor]), theirs("passthrough", [tensor]))


@given(shapes, seeds, spreads, st.floats(-1.5, 1.5),
       st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=4), switch)  # fmt: skip
def test_task_arithmetic(shape, seed, spread, scale, weights, normalize):
    total = abs(sum(weights)) if normalize else 1.0
    assume(total > 0.1)
    base, *tensors = drawn(shape, seed, len(weights), spread)
    assert_parity(
        "task_arithmetic", tensors, base, weights, own={"scale": scale, "normalize": normalize},
        other=lambda tensors, base: theirs(
            "task_arithmetic", tensors, base,
            weight=weights, normalize=normalize, **{"lambda": scale},
        ),
        size=max(1.0, sum(map(abs, weights)) / total),
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [0.02, 0.5])
def test_their_float32_is_met_as_well(shape, spread):
    base, *tensors = drawn(shape, 1, 3, spread)
    for name, origin, count, own, other in (
        ("linear", None, 3, {}, {"weight": 1.0}),
        ("nuslerp", None, 2, {}, {"weight": 1.0}),
        ("multislerp", None, 3, {}, {"weight": 1.0}),
        ("karcher", None, 3, {"compat": "mergekit"}, {}),
        ("nearswap", base, 1, {"t": 0.1}, {"t": 0.1}),
        ("task_arithmetic", base, 3, {"scale": 0.4}, {"weight": 1.0, "lambda": 0.4}),
    ):
        found = ours(name, tensors[:count], origin, **own)
        expected = theirs(name, tensors[:count], origin, **other)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(base.abs().amax()))


def assert_same(one: Tensor, other: Tensor, size: float = 1.0) -> None:
    assert one.dtype == other.dtype == torch.float32
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * size)


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


def test_lengths_are_a_little_longer_in_their_multislerp():
    tensors = [torch.tensor([1e-8, 0.0]), torch.tensor([0.0, 1e-6])]
    reference = theirs("multislerp", tensors, weight=1.0)
    found = ours("multislerp", tensors, compat="mergekit")
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        ours("multislerp", tensors), torch.full((2,), 5.05e-7 * 0.5**0.5), rtol=1e-5, atol=0
    )
    assert float(reference[0]) < 0.6 * float(reference[1])


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
    lines = ours("model_stock", tensors, base, filter_wise=True, compat="mergekit")
    assert_same(lines, reference, 5.0)
    slices = ours("model_stock", tensors, base, filter_wise=True)
    assert float((slices - reference).abs().amax()) > 0.01


def test_differences_below_a_millionth_count_as_one_in_their_nearswap():
    base, tensor = torch.zeros(1), torch.full((1,), 5e-7)
    assert theirs("nearswap", [tensor], base, t=4e-7).item() == pytest.approx(2e-7)
    assert ours("nearswap", [tensor], base, t=4e-7).item() == pytest.approx(4e-7)
