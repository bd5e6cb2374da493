from __future__ import annotations

import pytest
import torch

from alloykit.data.storage import room


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64]
)
def test_any_element_type_in_memory_and_on_disk(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    values = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    for limit, files in ((values.nbytes, 0), (values.nbytes - 1, 1)):
        kept = room((2, 3), limit, dtype)
        kept[:] = values
        assert torch.equal(kept, values)
        assert kept.dtype == dtype
        assert len(list(tmp_path.iterdir())) == files
        del kept
        assert list(tmp_path.iterdir()) == []


def test_a_view_keeps_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    row = room((2, 3), 0)[1]
    assert len(list(tmp_path.iterdir())) == 1
    row.fill_(2.0)
    assert row.sum() == 6


def test_no_dimensions_and_no_elements():
    assert room((), 100).shape == ()
    assert room((0, 4), 0).shape == (0, 4)
    assert room((1,)).dtype == torch.float32
