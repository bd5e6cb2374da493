"""Packed quantised tensors, known by their names and dtypes: codes, not numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from alloykit.types import TensorSpec

_BYTES = frozenset({torch.int8, torch.uint8})
_INTEGERS = _BYTES | {torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32}
_FLOAT8 = frozenset(
    {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
)
_CODES = _INTEGERS | _FLOAT8


@dataclass(frozen=True)
class _Scheme:
    """How a format is recognised: a tensor of such a name and dtype, beside one of the companions.

    Attributes:
        ending: What the name of the codes ends with.
        dtypes: What the codes are stored as.
        companions: Endings of which one takes the place of ``ending`` in another tensor's name.
        words: The format, for people.
    """

    ending: str
    dtypes: frozenset[torch.dtype]
    companions: tuple[str, ...]
    words: str

    def holds(self, name: str, spec: TensorSpec, specs: Mapping[str, TensorSpec]) -> bool:
        """Whether that tensor is packed in this way."""
        if spec.dtype not in self.dtypes or not name.endswith(self.ending):
            return False
        stem = name[: len(name) - len(self.ending)]
        return any(stem + companion in specs for companion in self.companions)


# The first that fits names the format, so the ones with telling companions come first.
_SCHEMES = (
    _Scheme("qweight", _INTEGERS, ("g_idx",), "GPTQ: several small integers in each element"),
    _Scheme("qweight", _INTEGERS, ("qzeros", "scales"), "GPTQ or AWQ: small integers packed"),
    _Scheme("qweight", _INTEGERS, ("weight_scales",), "EETQ: 8-bit integers with scales"),
    _Scheme(
        "weight",
        _BYTES,
        ("weight.absmax", "weight.quant_map"),
        "bitsandbytes: two 4-bit codes in each byte",
    ),
    _Scheme("weight", _BYTES, ("SCB", "weight.SCB"), "bitsandbytes: 8-bit integers with scales"),
    _Scheme(
        "weight_packed",
        _CODES,
        ("weight_scale", "weight_global_scale"),
        "compressed-tensors: small numbers packed",
    ),
    _Scheme("weight", _BYTES, ("weight_scale_2",), "NVFP4: two 4-bit numbers in each byte"),
    _Scheme("_blocks", _BYTES, ("_scales",), "MXFP4: two 4-bit numbers in each byte"),
    _Scheme(
        "weight",
        _FLOAT8,
        ("weight_scale_inv", "weight_scale", "scale", "scale_weight"),
        "float8 with own scales",
    ),
    _Scheme(
        "weight", _BYTES, ("weight_scale", "weight_scales", "scale"), "8-bit integers with scales"
    ),
    _Scheme("_proj", _FLOAT8, ("_proj_scale", "_proj_scale_inv"), "float8 with own scales"),
    _Scheme("W_q", _CODES, ("scale", "zero", "meta"), "HQQ: small integers packed"),
    _Scheme("._data", _CODES, ("._scale",), "quanto: small numbers with scales"),
    _Scheme("_qdata", _CODES, ("_scale",), "torchao: small numbers with scales"),
    _Scheme("codes", _INTEGERS, ("codebooks",), "AQLM: codes into code books"),
    _Scheme("indices", _INTEGERS, ("centroids", "centroids.weight"), "VPTQ: codes into code books"),
    _Scheme("Qidxs", _INTEGERS, ("SU", "SV"), "QuIP#: codes into code books"),
)


def packed(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Names of tensors that hold packed quantised numbers -> the format, in words.

    The mean of two such tensors is not the mean of what they stand for: every block of codes has
    a scale of its own. Use it before combining; a float8 or an integer tensor without such
    companions is what it seems, and is not listed.

    Args:
        specs: Name -> shape, dtype and place, as ``Checkpoint.specs`` gives them.

    Example:
        >>> specs = {
        ...     "q.qweight": TensorSpec((512, 4096), torch.int32, "0"),
        ...     "q.scales": TensorSpec((32, 4096), torch.float16, "1"),
        ...     "counts": TensorSpec((4,), torch.int32, "2"),
        ... }
        >>> packed(specs)
        {'q.qweight': 'GPTQ or AWQ: small integers packed'}

    References:
        The layouts of AutoGPTQ and GPTQModel, AutoAWQ, bitsandbytes, EETQ, compressed-tensors,
        NVIDIA ModelOpt, gpt-oss (MXFP4), DeepSeek-V3 (weight_scale_inv), HQQ, quanto, torchao,
        AQLM, VPTQ and QuIP#, as their checkpoints on the Hugging Face Hub have them.
    """
    found = {name: _format(name, specs) for name, spec in specs.items() if spec.dtype in _CODES}
    return {name: words for name, words in found.items() if words}


def _format(name: str, specs: Mapping[str, TensorSpec]) -> str:
    fitting = (s.words for s in _SCHEMES if s.holds(name, specs[name], specs))
    return next(fitting, "")
