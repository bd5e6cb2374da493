import hashlib

import pytest
import torch

from alloykit.checkpoints.digests import content_digest, file_digest
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.provenance import provenance
from alloykit.errors import CheckpointError


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    data = bytes(range(256)) * 40_000
    (tmp_path / "a").write_bytes(data)
    assert file_digest(tmp_path / "a") == f"sha256:{hashlib.sha256(data).hexdigest()}"
    with pytest.raises(CheckpointError, match="cannot be opened"):
        file_digest(tmp_path / "b")


def test_the_content_digest_sees_names_shapes_dtypes_and_values():
    base = {"a": torch.zeros(4), "b": torch.ones(2, dtype=torch.bfloat16)}
    changed = [
        {"a": torch.zeros(4), "c": base["b"]},
        {"a": torch.zeros(2, 2), "b": base["b"]},
        {"a": torch.zeros(4, dtype=torch.int32), "b": base["b"]},
        {"a": torch.tensor([0.0, 0, 0, -0.0]), "b": base["b"]},
        {"a": torch.zeros(4)},
    ]
    digests = {content_digest(open_checkpoint(state)) for state in [base, *changed]}
    assert len(digests) == 6
    assert content_digest(open_checkpoint(dict(reversed(base.items())))) in digests


def test_the_content_digest_is_the_same_over_blocks(monkeypatch):
    checkpoint = open_checkpoint({"w": torch.arange(1000.0).reshape(40, 25).t()})
    whole = content_digest(checkpoint)
    monkeypatch.setattr("alloykit.checkpoints.digests.BLOCK", 64)
    assert content_digest(checkpoint) == whole


def test_provenance_is_json_text_that_does_not_depend_on_order():
    record = provenance(
        inputs={"b": "sha256:2", "a": "sha256:1"},
        method="ties",
        parameters={"density": 0.2, "a": None},
        weights={"b": 1, "a": 2},
        notes=["x"],
    )
    assert record["inputs"] == '{"a": "sha256:1", "b": "sha256:2"}'
    assert record["weights"] == '{"a": 2.0, "b": 1.0}'
    assert record["parameters"] == '{"a": null, "density": 0.2}'
    assert set(record) == {"alloykit", "inputs", "method", "notes", "parameters", "weights"}
    with pytest.raises(ValueError, match="JSON"):
        provenance(inputs={}, method="m", parameters={"x": float("nan")}, weights=None)
