from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from alloykit.data.outputs import logits_of, output_tensor
from alloykit.errors import DataError

LOGITS = torch.tensor([[1.0, 2.0]])


@pytest.mark.parametrize("given", [LOGITS, {"logits": LOGITS}, SimpleNamespace(logits=LOGITS)])
def test_a_tensor_or_what_holds_logits(given):
    assert output_tensor(given) is LOGITS
    assert logits_of(given) is LOGITS


@pytest.mark.parametrize("given", [[LOGITS], {"scores": LOGITS}, SimpleNamespace(logits=None)])
def test_anything_else_is_refused_by_its_type(given):
    with pytest.raises(DataError, match=f"gives a {type(given).__name__}, which has no logits"):
        output_tensor(given)
