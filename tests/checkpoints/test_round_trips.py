"""Every store gives back every bit of every dtype, whole and in ranges."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensor_samples import EVERY, STORED, filled, same_bits, state_dicts

from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.element_types import NUMPY
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.writing import write_safetensors

NUMPY_DTYPES = sorted(NUMPY.values(), key=str)
quick = settings(max_examples=40, deadline=None)


def assert_holds(checkpoint, state):
    assert set(checkpoint.specs()) == set(state)
    for name, tensor in state.items():
        spec = checkpoint.specs()[name]
        assert (spec.shape, spec.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert same_bits(checkpoint.read(name), tensor)
        flat, half = tensor.reshape(-1), tensor.numel() // 2
        assert same_bits(checkpoint.read(name, start=0, stop=half), flat[:half])
        assert same_bits(checkpoint.read(name, start=half).reshape(-1), flat[half:])


@quick
@given(state_dicts(EVERY))
def test_memory(state):
    assert_holds(open_checkpoint(state), state)


@quick
@given(state_dicts(), st.randoms())
def test_our_safetensors(state, random):
    source = open_checkpoint(state, name="source")
    order = list(state)
    random.shuffle(order)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        stream = ((name, source.read(name)) for name in order)
        write_safetensors(path, source.specs(), stream, metadata={"k": "v"})
        opened = open_checkpoint(path)
        assert_holds(opened, state)
        assert opened.metadata == {"format": "pt", "k": "v"}
        with safe_open(path, "pt") as theirs:
            assert set(theirs.keys()) == set(state)
            assert theirs.metadata()["k"] == "v"


@quick
@given(state_dicts())
def test_their_safetensors(state):
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file(contiguous, path)
        assert_holds(open_checkpoint(path), state)


@quick
@given(state_dicts(EVERY), st.booleans())
def test_torch_files(state, new_form):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pth"
        torch.save(state, path, _use_new_zipfile_serialization=new_form)
        assert_holds(open_checkpoint(path), state)


@quick
@given(state_dicts(NUMPY_DTYPES), st.booleans())
def test_npz(state, packed):
    save = np.savez_compressed if packed else np.savez
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        save(path, **{f"x{n}": tensor.numpy() for n, tensor in enumerate(state.values())})
        assert_holds(open_checkpoint(path), {f"x{n}": t for n, t in enumerate(state.values())})


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_the_safetensors_library_reads_what_we_write(tmp_path, dtype):
    state = {
        "w": filled((3, 5), dtype),
        "scalar": filled((), dtype, 1),
        "no": filled((0, 2), dtype),
    }
    source = open_checkpoint(state, name="a")
    path = tmp_path / "a.safetensors"
    write_safetensors(path, source.specs(), source_tensors(source), metadata={})
    if dtype == torch.float8_e8m0fnu:  # their Python side cannot load this one yet
        with safe_open(path, "pt") as theirs:
            assert theirs.get_slice("w").get_dtype() == "F8_E8M0"
        return
    theirs = load_file(path)
    assert all(same_bits(theirs[name], tensor) for name, tensor in state.items())


def source_tensors(checkpoint):
    return ((name, checkpoint.read(name)) for name in checkpoint.specs())


def test_parity_with_torch_load(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    for form in (True, False):
        torch.save(model.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=form)
        theirs = torch.load(tmp_path / "a.pth", weights_only=True)
        ours = open_checkpoint(tmp_path / "a.pth")
        assert list(ours.specs()) == list(theirs)
        assert all(same_bits(ours.read(name), tensor) for name, tensor in theirs.items())
        assert_holds(open_checkpoint(model), theirs)


def test_parity_with_numpy_load(tmp_path):
    arrays = {
        "columns": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        "big_endian": np.arange(5, dtype=">i4"),
        "big_complex": np.array([1 + 2j, 3 - 4j], dtype=">c16"),
        "scalar": np.array(3, dtype=np.int16),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    for name in ("a.npz", "b.npz"):
        theirs = np.load(tmp_path / name, allow_pickle=False)
        ours = open_checkpoint(tmp_path / name)
        for key in arrays:
            np.testing.assert_array_equal(ours.read(key).numpy(), theirs[key])
            flat = theirs[key].reshape(-1)
            np.testing.assert_array_equal(ours.read(key, start=1).numpy(), flat[1:])


@given(st.data())
@quick
def test_any_range_of_a_strided_tensor(data):
    base = filled((4, 5, 6), torch.float32)
    order = data.draw(st.permutations(range(3)))
    step = data.draw(st.integers(1, 2))
    tensor = base.permute(*order)[::step, 1:]
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.integers(start, tensor.numel()))
    expected = tensor.reshape(-1)[start:stop]
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"w": tensor, "whole": base}, Path(folder) / "a.pth")
        stored = open_checkpoint(Path(folder) / "a.pth")
        assert same_bits(stored.read("w", start=start, stop=stop), expected)
    assert same_bits(open_checkpoint({"w": tensor}).read("w", start=start, stop=stop), expected)


def test_one_element_with_an_odd_stride(tmp_path):
    state = {"w": torch.arange(12.0).reshape(2, 6)[:1, :1].t()[:, 0].expand(1), "v": torch.ones(3)}
    state["u"] = torch.arange(6.0).as_strided((1,), (6,))
    source = open_checkpoint(state, name="a")
    write_safetensors(tmp_path / "a.safetensors", source.specs(), state.items(), metadata={})
    assert_holds(open_checkpoint(tmp_path / "a.safetensors"), state)
    assert content_digest(source) == content_digest(open_checkpoint(dict(state)))
