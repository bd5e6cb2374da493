from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from alloykit import types
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.types import Checkpoint, Interval, TensorGroup, TensorSpec

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


def group(name: str = "w", seed: int = 0) -> TensorGroup:
    return TensorGroup(name, ("a", "b"), (torch.zeros(2), torch.ones(2)), (0.5, 0.5), seed=seed)


def test_randomness_depends_on_seed_name_and_member_alone():
    def draw(group: TensorGroup, member: str) -> list[float]:
        return torch.rand(4, generator=group.generator(member)).tolist()

    expected = draw(group(), "a")
    torch.manual_seed(123)
    turned = dataclasses.replace(group(), members=("b", "a"))
    assert draw(turned, "a") == expected
    others = [draw(group(), "b"), draw(group("v"), "a"), draw(group(seed=1), "a")]
    assert all(other != expected for other in others)


def test_randomness_is_the_same_on_every_machine_and_in_every_version():
    # printf '0\\0w\\0a' | b2sum -l 64, its bytes as a little-endian number below 2^63.
    assert group().generator("a").initial_seed() == 2785324280577050587


def test_names_that_run_together_draw_different_numbers():
    one, other = group("ab").generator("c"), group("a").generator("bc")
    assert one.initial_seed() != other.initial_seed()


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
