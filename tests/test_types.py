from __future__ import annotations

import dataclasses
import hashlib
import math

import pytest
import torch

from alloykit import types
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.types import GRAIN, Checkpoint, Interval, TensorGroup, TensorSpec

FROZEN = [
    value
    for value in vars(types).values()
    if dataclasses.is_dataclass(value) and isinstance(value, type)
]


@pytest.mark.parametrize("kind", FROZEN, ids=lambda kind: kind.__name__)
def test_types_are_frozen_and_documented_field_by_field(kind):
    assert kind.__dataclass_params__.frozen
    for field in dataclasses.fields(kind):
        assert f"        {field.name}: " in (types.__dict__[kind.__name__].__doc__ or ""), (
            field.name
        )


@pytest.mark.parametrize(
    ("shape", "dtype", "numel", "nbytes"),
    [
        ((), torch.float32, 1, 4),
        ((0, 5), torch.float64, 0, 0),
        ((2, 3), torch.bfloat16, 6, 12),
        ((3,), torch.complex64, 3, 24),
        ((4,), torch.bool, 4, 4),
        ((4,), torch.float8_e4m3fn, 4, 4),
    ],
)
def test_a_spec_knows_its_size(shape, dtype, numel, nbytes):
    spec = TensorSpec(shape, dtype, "here")
    assert (spec.numel, spec.nbytes) == (numel, nbytes)


def group(name: str = "w", seed: int = 0, size: int = 4, start: int = 0) -> TensorGroup:
    tensors = (torch.zeros(size), torch.ones(size))
    return TensorGroup(name, ("a", "b"), tensors, (0.5, 0.5), seed=seed, start=start)


def test_randomness_depends_on_seed_name_and_member_alone():
    def draw(group: TensorGroup, member: str) -> list[float]:
        return group.uniform(member).tolist()

    expected = draw(group(), "a")
    torch.manual_seed(123)
    turned = dataclasses.replace(group(), members=("b", "a"))
    assert draw(turned, "a") == expected
    others = [draw(group(), "b"), draw(group("v"), "a"), draw(group(seed=1), "a")]
    assert all(other != expected for other in others)


def small_fast_counting(state: bytes, words: int) -> list[int]:
    """SFC64 (Doty-Humphrey, PractRand) in whole numbers, from its published recurrence."""
    a, b, c = (int.from_bytes(state[i : i + 8], "little") for i in (0, 8, 16))
    full, drawn = (1 << 64) - 1, []
    for counter in range(1, words + 1):
        word = (a + b + counter) & full
        a, b = b ^ (b >> 11), (c + (c << 3)) & full
        c = ((((c << 24) | (c >> 40)) & full) + word) & full
        drawn.append(word)
    return drawn


def test_randomness_is_the_same_on_every_machine_and_in_every_version():
    found = [int(number * 2**24) for number in group().uniform("a").tolist()]
    assert found == [11422616, 9402393, 2274784, 12032349]
    state = hashlib.blake2b(b"0\0w\0a\0" + b"0", digest_size=24).digest()
    words = small_fast_counting(state, 2)
    assert found == [half >> 8 for word in words for half in (word & 0xFFFFFFFF, word >> 32)]


def test_names_that_run_together_draw_different_numbers():
    one, other = group("ab").uniform("c"), group("a").uniform("bc")
    assert not torch.equal(one, other)


@pytest.mark.parametrize("start", [0, 1, 1000, GRAIN - 2, GRAIN, 3 * GRAIN + 5])
@pytest.mark.parametrize("size", [0, 1, 3, GRAIN + 4])
def test_an_elements_number_does_not_depend_on_the_block_it_is_in(start, size):
    whole = group(size=5 * GRAIN).uniform("b")
    part = group(size=size, start=start).uniform("b")
    assert torch.equal(part, whole[start : start + size])


def test_numbers_are_even_over_the_interval_and_shaped_like_the_tensors():
    tensors = (torch.zeros(100, 30, 100),)
    drawn = TensorGroup("w", ("a",), tensors, (1.0,)).uniform("a")
    assert drawn.shape == (100, 30, 100)
    assert drawn.dtype == torch.float32
    assert float(drawn.min()) >= 0.0
    assert float(drawn.max()) < 1.0
    counts = torch.histc(drawn, bins=20, min=0.0, max=1.0)
    # Five standard deviations of a count.
    assert float((counts - 15_000).abs().max()) < 5 * math.sqrt(15_000)
    mean_of_products = float((drawn.reshape(-1)[1:] * drawn.reshape(-1)[:-1]).mean())
    assert mean_of_products == pytest.approx(0.25, abs=0.002)


def test_a_copy_of_a_frozen_value_is_another_value():
    interval = Interval(0.5, 0.4, 0.6)
    wider = dataclasses.replace(interval, high=0.7)
    assert (interval.high, wider.high, wider.level) == (0.6, 0.7, 0.95)
    with pytest.raises(dataclasses.FrozenInstanceError):
        interval.high = math.inf  # type: ignore[misc]


def test_checkpoints_are_known_by_what_they_do():
    assert isinstance(MemoryCheckpoint({"w": torch.ones(1)}), Checkpoint)
    assert not isinstance({"w": torch.ones(1)}, Checkpoint)
    assert not isinstance(torch.nn.Linear(1, 1), Checkpoint)
