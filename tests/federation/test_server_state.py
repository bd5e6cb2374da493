"""What a server keeps between rounds, as a file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import CheckpointError
from alloykit.federation.contract import ServerState
from alloykit.federation.server_state import (
    as_tensors,
    load_state,
    of_tensors,
    refuse_other_state,
    save_state,
)
from client_samples import same_bits

STATE = ServerState(
    7,
    {"clip_norm": 0.1 + 0.2},
    {
        "first_moment": {"layer/0.weight": torch.randn(3, 2), "b": torch.tensor(-0.0)},
        "of.first_moment": {"b": torch.randn(2).double()},
        "control": {"z": torch.zeros(0, 4), "c": torch.tensor([1 + 2j])},
    },
)


def test_it_comes_back_bit_for_bit(tmp_path):
    save_state(STATE, tmp_path / "s.safetensors")
    found = load_state(tmp_path / "s.safetensors")
    assert (found.round, found.numbers) == (7, STATE.numbers)
    assert set(found.tensors) == set(STATE.tensors)
    for slot, tensors in STATE.tensors.items():
        assert set(found.tensors[slot]) == set(tensors)
        assert same_bits({n: found.tensors[slot][n] for n in tensors}, tensors)


def test_equal_states_are_equal_bytes(tmp_path):
    save_state(STATE, tmp_path / "a")
    save_state(load_state(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("state", [ServerState(), ServerState(3, {"a": 1.0}), ServerState(1, {}, {"s": {}})])  # fmt: skip
def test_a_state_without_tensors_is_a_file_too(tmp_path, state):
    save_state(state, tmp_path / "s")
    found = load_state(tmp_path / "s")
    assert (found.round, found.numbers, found.tensors) == (state.round, state.numbers, {})


def test_a_new_state_takes_the_place_of_the_old(tmp_path):
    save_state(STATE, tmp_path / "s")
    save_state(ServerState(8), tmp_path / "s")
    assert load_state(tmp_path / "s").round == 8
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_damage_shows(tmp_path):
    path = tmp_path / "s"
    save_state(STATE, path)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_state(path)
    path.write_bytes(raw[:-9])
    with pytest.raises(CheckpointError):
        load_state(path)


def test_something_else_is_no_state(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "m")
    with pytest.raises(CheckpointError, match="is no snapshot"):
        load_state(tmp_path / "m")
    from alloykit.training.snapshot_file import save

    save(tmp_path / "other", {"epoch": 3}, {"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="does not hold what a server keeps"):
        load_state(tmp_path / "other")


def test_names_may_hold_what_separates_them():
    again = of_tensors(7, STATE.numbers, as_tensors(STATE))
    assert again.tensors.keys() == STATE.tensors.keys()
    assert list(again.tensors["first_moment"]) == ["layer/0.weight", "b"]


def test_the_state_of_another_model_is_refused():
    server = MemoryCheckpoint({"w": torch.ones(3), "b": torch.ones(2)}, "m")
    refuse_other_state(ServerState(1, {}, {"s": {"w": torch.ones(3)}}), server)
    state = ServerState(1, {}, {"s": {"w": torch.ones(1), "x": torch.ones(2)}, "t": {"b": torch.ones(2)}})  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        refuse_other_state(state, server)
    assert str(caught.value).splitlines()[1:3] == [
        "  w   s: [1]   the model: [3]",
        "  x   s: [2]   the model: not there",
    ]
