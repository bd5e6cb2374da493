"""Which element types alloykit handles, what others call them, and how they become bytes."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

SAFETENSORS = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F8_E8M0": torch.float8_e8m0fnu,
        "C64": torch.complex64,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""Name in a safetensors header -> torch dtype."""

PACKED = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
"""Element types of safetensors that are smaller than a byte."""

SUPPORTED = frozenset(SAFETENSORS.values()) | {torch.complex128}
"""Every dtype that can be read; safetensors has no name for complex128."""

NUMPY = MappingProxyType(
    {
        "f8": torch.float64,
        "f4": torch.float32,
        "f2": torch.float16,
        "c16": torch.complex128,
        "c8": torch.complex64,
        "i8": torch.int64,
        "i4": torch.int32,
        "i2": torch.int16,
        "i1": torch.int8,
        "u8": torch.uint64,
        "u4": torch.uint32,
        "u2": torch.uint16,
        "u1": torch.uint8,
        "b1": torch.bool,
    }
)
"""Kind and size of a NumPy dtype -> torch dtype."""


def as_bytes(tensor: Tensor) -> Tensor:
    """The elements of a tensor, row-major, as a flat uint8 tensor on the CPU.

    Example:
        >>> as_bytes(torch.tensor([1, 256], dtype=torch.int16)).tolist()
        [1, 0, 0, 1]
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() <= 1:
        # One element or none counts as contiguous whatever its stride; a byte view needs stride 1.
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
