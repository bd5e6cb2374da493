import pytest
import torch

from alloykit.checkpoints.quantised import packed
from alloykit.types import TensorSpec

I32, I16, I8, U8 = torch.int32, torch.int16, torch.int8, torch.uint8
F32, F16, F8, E8 = torch.float32, torch.float16, torch.float8_e4m3fn, torch.float8_e8m0fnu


def specs(**dtypes):
    """Specs of these dtypes; dots in names are written as double underscores."""
    return {
        name.replace("__", "."): TensorSpec((8, 8), dtype, name) for name, dtype in dtypes.items()
    }


# Names and dtypes as published checkpoints of each format have them.
FORMATS = {
    "GPTQ": (specs(q__qweight=I32, q__qzeros=I32, q__scales=F16, q__g_idx=I32), "q.qweight"),
    "GPTQ or AWQ": (specs(q__qweight=I32, q__qzeros=I32, q__scales=F16), "q.qweight"),
    "EETQ": (specs(q__qweight=I8, q__weight_scales=F16), "q.qweight"),
    "bitsandbytes: two 4-bit": (
        specs(
            q__weight=U8,
            q__weight__absmax=U8,
            q__weight__quant_map=F32,
            q__weight__nested_absmax=F32,
            q__weight__nested_quant_map=F32,
            q__weight__quant_state__bitsandbytes__nf4=U8,
        ),
        "q.weight",
    ),
    "bitsandbytes: 8-bit": (specs(q__weight=I8, q__SCB=F32, q__weight_format=U8), "q.weight"),
    "compressed-tensors": (
        specs(q__weight_packed=I32, q__weight_scale=F16, q__weight_shape=torch.int64),
        "q.weight_packed",
    ),
    "NVFP4": (specs(q__weight=U8, q__weight_scale=F8, q__weight_scale_2=F32), "q.weight"),
    "MXFP4": (specs(e__gate_up_proj_blocks=U8, e__gate_up_proj_scales=U8), "e.gate_up_proj_blocks"),
    "float8 with own scales": (specs(q__weight=F8, q__weight_scale_inv=F32), "q.weight"),
    "float8 with own": (specs(q__weight=F8, q__weight_scale=E8, q__input_scale=F32), "q.weight"),
    "8-bit integers": (specs(q__weight=I8, q__weight_scale=F16), "q.weight"),
    "HQQ": (specs(q__W_q=U8, q__scale=F16, q__zero=F16), "q.W_q"),
    "quanto": (specs(q__weight___data=I8, q__weight___scale=F16), "q.weight._data"),
    "torchao": (specs(q__weight_qdata=I8, q__weight_scale=F32), "q.weight_qdata"),
    "AQLM": (specs(q__codes=I16, q__codebooks=F16, q__scales=F16), "q.codes"),
    "VPTQ": (specs(q__indices=I32, q__centroids__weight=F16), "q.indices"),
    "QuIP#": (specs(q__Qidxs=torch.int64, q__SU=F16, q__SV=F16), "q.Qidxs"),
}


@pytest.mark.parametrize("words", FORMATS)
def test_each_format_is_known(words):
    layer, name = FORMATS[words]
    found = packed({"norm.weight": TensorSpec((8,), F16, "n"), **layer})
    assert list(found) == [name]
    assert found[name].startswith(words)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        specs(a__weight=F16, a__bias=F16, bn__num_batches_tracked=torch.int64),
        specs(a__weight=F8, a__bias=F16),  # values of their own, without scales
        specs(a__weight=F16, a__weight_scale=F32),  # a layer that has a learned scale
        specs(a__weight=F16, a__scale=F16, a__zero=F16),
        specs(a__weight=I8, b__weight_scale=F16),  # the scale of another layer
        specs(codes=I32, qweight=I32, indices=I32),
        specs(a__qweight=F16, a__scales=F16),  # floats, whatever they are called
    ],
)
def test_plain_tensors_are_not_listed(plain):
    assert packed(plain) == {}


def test_it_takes_time_by_the_number_of_tensors_only():
    many = {f"l{i}.weight": TensorSpec((1,), F8, str(i)) for i in range(20_000)}
    many |= {f"l{i}.weight_scale_inv": TensorSpec((1,), F32, "s") for i in range(20_000)}
    assert len(packed(many)) == 20_000
