"""Tensors of every dtype, and a comparison that sees every bit."""

import torch
from hypothesis import strategies as st

from alloykit.checkpoints.element_types import SAFETENSORS, SUPPORTED

STORED = sorted(SAFETENSORS.values(), key=str)
EVERY = sorted(SUPPORTED, key=str)


def filled(shape, dtype, seed=0):
    """A tensor of random bytes; booleans stay booleans."""
    generator = torch.Generator().manual_seed(seed)
    size = [*shape, dtype.itemsize]
    data = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        return data[..., 0] > 127
    return data.view(dtype).reshape(shape)


def same_bits(a, b):
    """Whether two tensors agree in dtype, shape and every bit (NaN payloads included)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    first, second = (t.clone(memory_format=torch.contiguous_format).reshape(-1) for t in (a, b))
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def state_dicts(draw, dtypes=STORED):
    """Name -> tensor: any dtype, 0-dim, empty, and permuted (not contiguous) ones."""
    text = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=12)
    names = draw(st.lists(text, min_size=1, max_size=4, unique=True))
    state = {}
    for seed, name in enumerate(names):
        tensor = filled(draw(shapes), draw(st.sampled_from(dtypes)), seed)
        state[name] = tensor.permute(draw(st.permutations(range(tensor.ndim))))
    return state
