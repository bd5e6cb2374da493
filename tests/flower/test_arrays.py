"""Tensors in Flower's records, and what is refused before it is read."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import CheckpointError
from alloykit.plugins.flower_arrays import (
    BIT_TYPES,
    BITS,
    SAME,
    from_arrays,
    read_arrays,
    to_arrays,
)

STORED = [
    torch.float64, torch.float32, torch.float16, torch.complex64, torch.complex128, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
]  # fmt: skip


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether dtype, shape and bits are equal."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and one.contiguous().numpy(force=True).tobytes() == other.numpy().tobytes()


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_numbers_come_back_and_flower_reads_them_too(dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    record = to_arrays({"w": tensor})
    assert same(from_arrays(record)["w"], tensor)
    assert same(record.to_torch_state_dict()["w"], tensor)
    assert same(from_arrays(ArrayRecord({"w": tensor}))["w"], tensor)


@pytest.mark.parametrize("name", BIT_TYPES)
def test_what_numpy_lacks_comes_back_bit_for_bit(name):
    dtype = BIT_TYPES[name]
    unsigned = torch.uint16 if dtype.itemsize == 2 else torch.uint8
    bits = torch.arange(256**dtype.itemsize).to(unsigned)
    found = from_arrays(to_arrays({"w": bits.view(dtype)}))["w"]
    assert found.dtype == dtype
    assert torch.equal(found.view(unsigned), bits)


def test_flower_says_that_it_cannot_read_bits_instead_of_reading_them_wrongly():
    record = to_arrays({"w": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(TypeError, match=BITS):
        record.to_torch_state_dict()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3), torch.zeros(0, 4), torch.randn(4, 3).t(), torch.randn(9)[::2],
        torch.tensor([True, False]), torch.randn(2, dtype=torch.complex64).conj(),
        torch.ones(1).expand(5), torch.tensor(1.5, dtype=torch.bfloat16),
    ],
    ids=["0-d", "empty", "transposed", "strided", "bool", "conj", "expanded", "0-d bf16"],
)  # fmt: skip
def test_every_layout_comes_back(tensor):
    found = from_arrays(to_arrays({"w": tensor}))["w"]
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor.resolve_conj())
    found.fill_(0)  # A client may train what it got.


def test_flowers_own_records_may_be_stored_by_columns():
    tensor = torch.randn(4, 3).t()
    record = ArrayRecord({"w": tensor})
    assert b"'fortran_order': True" in record["w"].data
    assert torch.equal(from_arrays(record)["w"], tensor)


def test_tied_tensors_are_sent_once_and_come_back_tied():
    model = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False))
    model[1].weight = model[0].weight
    record = to_arrays(model)
    assert list(record) == ["0.weight", "1.weight"]
    assert record["1.weight"].stype == SAME
    assert sum(len(array.data) for array in record.values()) < 40 * 40 * 4 + 256
    found = from_arrays(record)
    assert found["1.weight"] is found["0.weight"]
    assert torch.equal(found["0.weight"], model[0].weight)


def test_what_is_no_tensor_is_refused_at_once():
    with pytest.raises(CheckpointError, match="it is a str"):
        to_arrays({"w": torch.ones(1), "note": "text"})


def npy(header: str, payload: bytes = b"") -> bytes:
    """A .npy file with any header."""
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + payload


FOUR = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (2000000000000,), }"  # 14.6 TiB
PICKLED = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
STORAGE = "numpy.ndarray"


def objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([print], dtype=object), allow_pickle=True)
    return stream.getvalue()


BAD = {
    "14.6 TiB in the header": ("float64", (2 * 10**12,), STORAGE, npy(HUGE), "does not fill its 0"),
    "truncated": ("float32", (2, 2), STORAGE, npy(FOUR, b"\0" * 12), "does not fill its 12 bytes"),
    "too long": ("float32", (2, 2), STORAGE, npy(FOUR, b"\0" * 20), "does not fill its 20 bytes"),
    "garbage": ("float32", (2, 2), STORAGE, b"\0" * 40, "magic string"),
    "nothing": ("float32", (2, 2), STORAGE, b"", "magic string"),
    "no header": ("float32", (2, 2), STORAGE, npy("[" * 100), "header cannot be read"),
    "a pickle": ("object", (1,), STORAGE, objects(), "not numbers"),
    "objects without one": ("object", (1,), STORAGE, npy(PICKLED, b"\0" * 8), "not numbers"),
    "text": ("<U1", (1,), STORAGE, npy(FOUR.replace("<f4", "<U1")), "not numbers"),
    "big-endian": (">f4", (2, 2), STORAGE, npy(FOUR.replace("<f4", ">f4"), b"\0" * 16), "not num"),
    "another shape said": ("float32", (4,), STORAGE, npy(FOUR, b"\0" * 16), "it says [4]"),
    "another dtype said": ("int32", (2, 2), STORAGE, npy(FOUR, b"\0" * 16), "it says int32"),
    "bits of float32": ("bfloat16", (2, 2), BITS, npy(FOUR, b"\0" * 16), "says bfloat16 and holds"),
    "bits of no dtype": ("bfloat17", (2, 2), BITS, npy(FOUR, b"\0" * 16), "says bfloat17"),
    "unknown storage": ("float32", (2, 2), "pickle", npy(FOUR, b"\0" * 16), "is not known"),
    "tied to nothing": ("float32", (2, 2), SAME, b"elsewhere", "which is no array here"),
    "tied to itself": ("float32", (2, 2), SAME, b"w", "which is no array here"),
    "negative": ("float32", (-1, 2), STORAGE, npy(FOUR.replace("(2,", "(-1,")), "does not fill"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named_and_the_rest_is_read(case):
    dtype, shape, stype, data, expected = BAD[case]
    record = to_arrays({"good": torch.ones(2)})
    record["w"] = Array(dtype=dtype, shape=shape, stype=stype, data=data)
    found, (reason,) = read_arrays(record)
    assert list(found) == ["good"]
    assert reason.startswith("w: ")
    assert expected in reason
    with pytest.raises(CheckpointError, match="1 array of the record"):
        from_arrays(record)


def test_a_payload_larger_than_the_servers_tensor_is_not_even_looked_at():
    server = MemoryCheckpoint({"w": torch.zeros(2, 2)}, "the server").specs()
    record = to_arrays({"w": torch.zeros(400, 40)})
    found, (reason,) = read_arrays(record, server)
    assert found == {}
    assert "64,128 bytes" in reason
    assert "takes 16" in reason
    assert read_arrays(to_arrays({"w": torch.zeros(2, 2, dtype=torch.float64)}), server)[1] == []


def test_nothing_is_copied_on_the_servers_side():
    record = to_arrays({"w": torch.ones(1000)})
    data = np.frombuffer(record["w"].data, np.uint8)
    (view,) = read_arrays(record)[0].values()
    start = data.__array_interface__["data"][0]
    assert start <= view.data_ptr() < start + data.size


def test_bytes_that_are_no_truth_values_become_some():
    header = npy("{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }", b"\x00\x01\x07")
    record = ArrayRecord({"w": Array(dtype="bool", shape=(3,), stype=STORAGE, data=header)})
    assert read_arrays(record)[0]["w"].view(torch.uint8).tolist() == [0, 1, 1]
