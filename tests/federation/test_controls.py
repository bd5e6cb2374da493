"""Control variates on the server."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.federation.controls import misfit_of_control, moved
from alloykit.federation.structure import structure_of

MODEL = {"w": torch.ones(2), "phase": torch.ones(2, dtype=torch.complex64), "i": torch.tensor(1)}
STRUCTURE = structure_of(MemoryCheckpoint(MODEL, "m"))


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        ({}, ""),
        ({"w": torch.zeros(2)}, ""),
        ({"w": torch.zeros(2).half()}, ""),
        ({"phase": torch.ones(2, dtype=torch.complex64)}, ""),
        ({"i": torch.tensor(1.0)}, "its control variate has i, which is not averaged"),
        ({"x": torch.tensor(1.0)}, "its control variate has x, which is not averaged"),
        ({"w": torch.zeros(1)}, "its control variate's w is [1]"),
        ({"w": torch.tensor([1.0, float("inf")])}, "its control variate's w holds NaN or infinite"),
        ({"w": np.zeros(2)}, "its control variate's w is no tensor"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "its control variate's w is no tensor of numbers like"),
        ({"phase": torch.ones(2)}, "its control variate's phase is no tensor of numbers like"),
    ],
)  # fmt: skip
def test_what_may_be_sent(control, reason):
    found = misfit_of_control(control, STRUCTURE)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_the_mean_of_the_changes_is_added_in_part():
    before = {"w": torch.tensor([1.0, 1.0]), "old": torch.tensor([5.0])}
    changes = [{"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([4.0, 0.0]), "v": torch.tensor([8.0])}]  # fmt: skip
    found = moved(before, changes, 0.25)
    assert found["w"].tolist() == [1.75, 1.0]
    assert found["v"].tolist() == [1.0]  # a client that leaves it out did not change it
    assert found["old"].tolist() == [5.0]
    assert before["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
    ],
)
def test_it_is_kept_in_the_compute_dtype(sent, kept):
    found = moved({}, [{"w": torch.tensor([3.0]).to(sent)}], 1.0)["w"]
    assert (found.dtype, found.tolist()) == (kept, [3.0])


def test_the_imaginary_part_is_kept():
    found = moved({"w": torch.tensor([1j])}, [{"w": torch.tensor([2 + 4j])}], 0.5)
    assert found["w"].tolist() == [1 + 3j]


def test_nothing_sent_changes_nothing():
    assert moved({"w": torch.ones(1)}, [{}, {}], 0.5) == {"w": torch.ones(1)}
