"""Checkpoints that do not fit together, merged from the command line: refused, or merged rightly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from command_line import run

State = dict[str, Tensor]
SECONDS = 3.0
NAN, INF = math.nan, math.inf


def base() -> State:
    return {
        "w": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        "b": torch.tensor([1.0, 2.0]),
        "steps": torch.tensor(7),
        "flag": torch.tensor([True, False]),
    }


def changed(**tensors: Tensor | None) -> State:
    """The model with tensors replaced, added, or (None) taken away."""
    state = base() | {name: t for name, t in tensors.items() if t is not None}
    return {name: t for name, t in state.items() if tensors.get(name, t) is not None}


def filled(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((2, 3), value, dtype=dtype)


REFUSED: dict[str, tuple[Callable[[], State], tuple[str, ...]]] = {
    "a missing tensor": (lambda: changed(b=None), ("b", "missing", "1 tensor is not in all")),
    "an extra tensor": (lambda: changed(c=torch.ones(1)), ("c", "missing")),
    "a renamed tensor": (lambda: changed(b=None, bias=base()["b"]), ("b", "bias", "2 tensors")),
    "another order of dimensions": (
        lambda: changed(w=base()["w"].t().contiguous()),
        ("w", "[3, 2]"),
    ),
    "another shape of as many": (lambda: changed(w=torch.ones(6)), ("w", "[2, 3]", "[6]")),
    "a row that would broadcast": (lambda: changed(w=torch.ones(3)), ("w", "[3]")),
    "a matrix of one row": (lambda: changed(w=torch.ones(1, 3)), ("w", "[1, 3]")),
    "a scalar that would broadcast": (lambda: changed(w=torch.tensor(1.0)), ("w", "[]")),
    "a scalar as a vector of one": (lambda: changed(steps=torch.tensor([7])), ("steps", "[1]")),
    "no elements": (lambda: changed(w=torch.ones(0, 3)), ("w", "[0, 3]")),
    "more rows": (lambda: changed(b=torch.ones(5)), ("b", "3 more rows")),
    "integers for floats": (lambda: changed(w=torch.ones(2, 3, dtype=torch.int64)), ("w", "int64")),
    "booleans for floats": (lambda: changed(b=torch.tensor([True, True])), ("b", "bool")),
    "booleans for integers": (lambda: changed(steps=torch.tensor(True)), ("steps", "bool")),
    "complex for real": (
        lambda: changed(b=torch.ones(2, dtype=torch.complex64)),
        ("b", "complex64"),
    ),
    "integers that differ": (lambda: changed(steps=torch.tensor(8)), ("steps",)),
    "large integers that differ by one": (
        lambda: changed(steps=torch.tensor(2**62 + 1)),
        ("steps",),
    ),
    "booleans that differ": (lambda: changed(flag=torch.tensor([True, True])), ("flag",)),
    "not a number": (lambda: changed(w=filled(NAN)), ("w", "6 NaN")),
    "an infinity": (lambda: changed(b=torch.tensor([INF, 1.0])), ("b", "1 Inf")),
    "infinities of both signs": (lambda: changed(b=torch.tensor([INF, -INF])), ("b", "2 Inf")),
    "everything at once": (
        lambda: {"w": torch.ones(6), "x": torch.ones(1), "steps": torch.tensor(7.0)},
        ("w", "x", "b", "flag", "steps"),
    ),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    make: Callable[[], State],
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_file(base(), first)
    save_file(make(), second)
    began = time.monotonic()
    finished = run(capsys, ["merge", "linear", first, second, "-o", tmp_path / "out.safetensors"])
    assert time.monotonic() - began < SECONDS
    assert finished.code == 4, finished.err
    for word in words:
        assert word in finished.err
    assert "Traceback" not in finished.err
    assert "not foreseen" not in finished.err
    assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}


MERGED: dict[str, tuple[Callable[[], State], str, Tensor]] = {
    "half precision": (lambda: changed(b=torch.tensor([3.0, 4.0]).half()), "b",
                       torch.tensor([2.0, 3.0])),
    "bfloat16": (lambda: changed(b=torch.tensor([3.0, 4.0]).bfloat16()), "b",
                 torch.tensor([2.0, 3.0])),
    "double precision": (lambda: changed(b=torch.tensor([3.0, 4.0]).double()), "b",
                         torch.tensor([2.0, 3.0]).double()),
    "float8": (lambda: changed(w=filled(3.0).to(torch.float8_e4m3fn)), "w",
               torch.tensor([[2.0, 2.5, 3.0], [3.5, 4.0, 4.5]])),
    "narrower integers": (lambda: changed(steps=torch.tensor(7, dtype=torch.int32)), "steps",
                          torch.tensor(7)),
    "numbers near the largest": (lambda: changed(b=torch.full((2,), 3e38)), "b",
                                 torch.tensor([1.5e38, 1.5e38])),
}  # fmt: skip


@pytest.mark.parametrize(("make", "name", "expected"), MERGED.values(), ids=MERGED)
def test_what_differs_harmlessly_is_merged(
    make: Callable[[], State],
    name: str,
    expected: Tensor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_file(base(), first)
    save_file(make(), second)
    finished = run(capsys, ["merge", "linear", first, second, "-o", tmp_path / "out.safetensors"])
    assert finished.code == 0, finished.err
    found = load_file(tmp_path / "out.safetensors")[name]
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, rtol=1e-6, atol=0)


PACKED: dict[str, State] = {
    "GPTQ": {
        "w.qweight": torch.ones(2, 3, dtype=torch.int32),
        "w.qzeros": torch.ones(1, 3, dtype=torch.int32),
        "w.scales": torch.ones(1, 3).half(),
        "w.g_idx": torch.zeros(2, dtype=torch.int32),
    },
    "float8 with own scales": {
        "l.weight": filled(1.0, torch.float8_e4m3fn),
        "l.weight_scale_inv": torch.ones(1, 1),
    },
    "bitsandbytes": {
        "l.weight": torch.ones(3, 1, dtype=torch.uint8),
        "l.weight.absmax": torch.ones(1),
        "l.weight.quant_map": torch.ones(16),
    },
}


@pytest.mark.parametrize("scheme", PACKED)
def test_packed_tensors_are_refused_even_where_they_are_equal(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        save_file(PACKED[scheme], tmp_path / f"{name}.safetensors")
    models = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    finished = run(capsys, ["merge", "linear", *models, "-o", tmp_path / "out.safetensors"])
    assert finished.code == 4, finished.err
    assert scheme in finished.err
    assert next(iter(PACKED[scheme])) in finished.err
    assert "Dequantise" in finished.err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_gguf_file_is_refused_for_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(base(), tmp_path / "first.safetensors")
    for name in ("model.gguf", "model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0" + bytes(100))
        models = [tmp_path / "first.safetensors", tmp_path / name]
        finished = run(capsys, ["merge", "linear", *models, "-o", tmp_path / "out.safetensors"])
        assert finished.code == 4, finished.err
        assert f"{name} is a GGUF file" in finished.err
