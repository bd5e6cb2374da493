"""The clients' values, walked in blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.federation import fused, values
from alloykit.federation.structure import structure_of
from alloykit.federation.values import Source, Values, centre
from client_samples import bits, same_bits
from strategies import state_dicts


def opened(state):
    return MemoryCheckpoint(state, "m")


def values_of(server, clients, deltas=(), **files):
    sources = [Source(f"c{i}", opened(s), i in deltas) for i, s in enumerate(clients)]
    origin = None if server is None else opened(server)
    return Values(structure_of(opened(server or clients[0])), sources, origin)


def one_tensor(*tensors, deltas=()):
    server, *clients = ({"w": tensor} for tensor in tensors)
    return values_of(server, clients, deltas)


def flat(tensor):
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.reshape(-1).double()


weights = st.lists(st.sampled_from([0.0, 0.25, 1.0, -0.5, 1.7]), min_size=3, max_size=3)


@given(states=state_dicts(4), factors=weights)
def test_a_combination_is_the_formula_in_float64(states, factors):
    server, *clients = states
    found = values_of(server, clients)
    for name in found.structure.averaged:
        own = flat(server[name])
        wanted = own + sum(c * (flat(s[name]) - own) for c, s in zip(factors, clients, strict=True))
        got = found.combination(name, factors)
        assert got.shape == server[name].shape
        bound = 1e-6 * float(torch.stack([flat(s[name]).abs() for s in states]).max()) * 8 if own.numel() else 0  # fmt: skip
        torch.testing.assert_close(flat(got), wanted, rtol=0, atol=bound)


@given(states=state_dicts(1), factors=weights)
def test_what_no_client_changed_stays_to_the_bit(states, factors):
    (server,) = states
    found = values_of(server, [server] * 3)
    for name in found.structure.averaged:
        got = found.combination(name, factors)
        assert torch.equal(bits(got), bits(server[name].to(got.dtype)))


@pytest.mark.parametrize("size", [0, 1, values.BLOCK - 1, values.BLOCK, 2 * values.BLOCK + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_loops_are_the_plain_ones_bit_for_bit(size, dtype):
    generator = torch.Generator().manual_seed(size)
    found = one_tensor(*(torch.randn(size, generator=generator, dtype=dtype) for _ in range(5)))
    factors, squares, walked = [0.3, 0.0, -0.2, 0.9], [0.0] * 4, [0.0] * 4
    compiled = found.combination("w", factors, squares)
    plain = torch.empty(size, dtype=dtype)
    found._walk("w", factors, plain, walked)
    assert torch.equal(compiled, plain)
    assert squares == walked
    unmeasured = torch.empty(size, dtype=dtype)
    raws = [source.checkpoint.read("w") for source in found.sources]
    fused._sum_of_deltas(raws, found.server.read("w"), factors, unmeasured, values.BLOCK, False)
    assert torch.equal(unmeasured, compiled)


def test_the_compiled_mean_is_the_plain_one_bit_for_bit():
    generator = torch.Generator().manual_seed(2)
    raws = [torch.randn(70_000, generator=generator) for _ in range(4)]
    one, other = torch.empty(70_000), torch.empty(70_000)
    fused.running_mean(raws, [1.0, 0.5, 0.3, 0.25], one, values.BLOCK)
    fused._running_mean(raws, [1.0, 0.5, 0.3, 0.25], other, values.BLOCK)
    assert torch.equal(one, other)


def test_they_are_compiled():
    assert isinstance(fused.sum_of_deltas, torch.jit.ScriptFunction)
    assert isinstance(fused.running_mean, torch.jit.ScriptFunction)


@given(states=state_dicts(3), parts=st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_a_mean_is_the_formula_in_float64(states, parts):
    found = values_of(states[0], states)
    shares = [part / sum(parts) for part in parts]
    for name in found.structure.averaged:
        wanted = sum(w * flat(s[name]) for w, s in zip(shares, states, strict=True))
        bound = 2e-6 * float(wanted.abs().max() + 1) * 30 if wanted.numel() else 0
        torch.testing.assert_close(flat(found.mean(name, shares)), wanted, rtol=0, atol=bound)


def test_lengths_outside_the_range_of_float32():
    found = one_tensor(torch.zeros(2), torch.tensor([3e30, 4e30]), torch.tensor([3e-30, 4e-30]),
                       torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.inf]))  # fmt: skip
    one, other, nan, inf = found.squares()
    assert one == pytest.approx(25e60, rel=1e-6)
    assert other == pytest.approx(25e-60, rel=1e-6)
    assert math.isnan(nan)
    assert inf == math.inf


def test_changes_are_taken_as_they_are():
    found = one_tensor(torch.tensor([10.0]), torch.tensor([3.0]), torch.tensor([3.0]), deltas=(1,))
    assert found.combination("w", [1.0, 0.0]).tolist() == [3.0]
    assert found.combination("w", [0.0, 1.0]).tolist() == [13.0]
    assert found.squares() == [49.0, 9.0]
    assert found.products().tolist() == [[49.0, -21.0], [-21.0, 9.0]]
    seen = []
    found.blockwise("w", lambda group: seen.extend(group.tensors) or group.tensors[0])
    assert [tensor.tolist() for tensor in seen] == [[3.0], [13.0]]


@given(states=state_dicts(5))
def test_products_are_those_of_the_deltas(states):
    server, *clients = states
    found = values_of(server, clients)
    deltas = [
        torch.cat([flat(s[n]) - flat(server[n]) for n in found.structure.averaged]) for s in clients
    ]
    wanted = torch.stack(deltas) @ torch.stack(deltas).T
    bound = 1e-6 * float(wanted.diagonal().max())
    torch.testing.assert_close(torch.from_numpy(found.products()), wanted, rtol=1e-6, atol=bound)


def distances(products):
    squares = np.diagonal(products)
    return squares[:, None] + squares[None, :] - 2 * products


def test_distances_are_good_where_all_moved_far():
    generator = torch.Generator().manual_seed(1)
    server, far = torch.zeros(10_000), torch.randn(10_000, generator=generator) * 100
    clients = [far + torch.randn(10_000, generator=generator) * 0.01 for _ in range(4)]
    found = distances(one_tensor(server, *clients).products())
    for i in range(4):
        for j in range(i):
            wanted = float((clients[i].double() - clients[j].double()).square().sum())
            assert found[i, j] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("absurd", [1e6, 1e15, 1e30, 3e38, math.inf, math.nan])
def test_one_absurd_client_leaves_the_distances_of_the_others(absurd):
    generator = torch.Generator().manual_seed(1)
    server = torch.randn(1000, generator=generator)
    clients = [server + torch.randn(1000, generator=generator) * 0.01 for _ in range(5)]
    alone = distances(one_tensor(server, *clients).products())
    bad = [server + torch.full((1000,), absurd), server + torch.full((1000,), absurd)]
    together = distances(one_tensor(server, *clients, *bad).products())[:5, :5]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-9)


def test_the_centre_of_large_numbers():
    rows = np.array([[1e20, 2.0], [3e20, 4.0]], dtype=np.float32)
    with np.errstate(over="ignore"):
        assert centre(rows).tolist() == [0.0, 0.0]  # then float64 has its turn
    assert centre(rows.astype(np.float64)).tolist() == pytest.approx([2e20, 3.0])
    found = one_tensor(torch.zeros(1), torch.tensor([1e20]), torch.tensor([3e20]))
    np.testing.assert_allclose(found.products(), [[1e40, 3e40], [3e40, 9e40]], rtol=1e-6)


def test_blocks_of_the_first_client_where_there_is_no_server():
    found = values_of(None, [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([4.0, 2.0])}])
    assert found.combination("w", [0.5, 0.5]).tolist() == [2.5, 2.0]
    assert found.products().tolist() == [[0.0, 0.0], [0.0, 9.0]]
    bases = []
    found.blockwise("w", lambda group: bases.append(group.base) or group.tensors[0])
    assert bases == [None]


@pytest.mark.parametrize("count", [3, 7])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64, torch.float32, torch.bfloat16])
def test_small_blocks_of_files_are_the_whole_in_memory(count, dtype, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(count)
    server, *clients = (
        {"w": torch.randn(5, 13, generator=generator).to(dtype), "v": torch.randn(1, generator=generator)}
        for _ in range(count + 1)
    )  # fmt: skip
    whole = values_of(server, clients)
    for i, state in enumerate(clients):
        save_file(state, tmp_path / f"{i}.safetensors")
    monkeypatch.setattr(values, "FEWEST", 1)
    monkeypatch.setattr(values, "TOGETHER", 11 * count)  # an odd number of elements of each
    files = [Source(s.client, open_checkpoint(tmp_path / f"{i}.safetensors")) for i, s in enumerate(whole.sources)]  # fmt: skip
    found = Values(whole.structure, files, whole.server)
    factors = torch.rand(count, generator=generator).tolist()

    def largest(group):
        return torch.stack(group.tensors).amax(0)

    assert torch.equal(found.combination("w", factors), whole.combination("w", factors))
    blocks = found.blockwise("w", largest)
    monkeypatch.undo()
    assert torch.equal(blocks, whole.blockwise("w", largest))
    np.testing.assert_allclose(found.products(), whole.products(), rtol=1e-6)


def test_layouts_do_not_change_a_bit():
    generator = torch.Generator().manual_seed(5)
    states = [{"w": torch.randn(40, 30, generator=generator)} for _ in range(4)]
    turned = [{"w": state["w"].t().contiguous().t()} for state in states]
    one, other = values_of(states[0], states[1:]), values_of(turned[0], turned[1:])
    assert same_bits({"w": one.combination("w", [0.2, 0.3, 0.4])},
                     {"w": other.combination("w", [0.2, 0.3, 0.4])})  # fmt: skip
    assert one.squares() == other.squares()


def test_clients_of_weight_zero_are_not_read():
    found = one_tensor(torch.ones(2), torch.tensor([math.nan, 1.0]), torch.tensor([3.0, 3.0]))
    assert found.combination("w", [0.0, 0.5]).tolist() == [2.0, 2.0]
    assert found.mean("w", [0.0, 1.0]).tolist() == [3.0, 3.0]
    assert found.only([1]).squares() == [8.0]
