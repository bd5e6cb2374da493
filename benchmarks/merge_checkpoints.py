"""Checkpoints to measure merging with: a base and three fine-tunes, shaped like small Llamas.

Made once into a folder and reused from there. Values are random, so nothing depends on a download,
but they have the statistics that matter: weights of deviation 0.02, and fine-tunes whose task
vectors have RMS 5e-4 and a correlation of one half.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

FINE_TUNES = ("ft1", "ft2", "ft3")
DELTA, CORRELATION, DEVIATION = 5e-4, 0.5, 0.02
VOCABULARY, HEAD_DIM = 32_000, 64
LARGEST_SHARD = 800_000_000


@dataclass(frozen=True)
class Llama:
    """The sizes of a model of this family."""

    hidden: int
    layers: int
    intermediate: int
    key_heads: int

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the tensors, in the order in which the models hold them."""
        hidden, wide, keys = self.hidden, self.intermediate, self.key_heads * HEAD_DIM
        yield "model.embed_tokens.weight", (VOCABULARY, hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.self_attn.q_proj.weight", (hidden, hidden)
            yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
            yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)
            yield f"{prefix}.mlp.gate_proj.weight", (wide, hidden)
            yield f"{prefix}.mlp.up_proj.weight", (wide, hidden)
            yield f"{prefix}.mlp.down_proj.weight", (hidden, wide)
            yield f"{prefix}.input_layernorm.weight", (hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (VOCABULARY, hidden)

    def config(self) -> dict[str, object]:
        """What ``config.json`` says of it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.hidden // HEAD_DIM,
            "num_key_value_heads": self.key_heads,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


SIZES = {
    "0.1": Llama(hidden=768, layers=8, intermediate=2048, key_heads=12),
    "1.1": Llama(hidden=2048, layers=22, intermediate=5632, key_heads=4),
    "3": Llama(hidden=3072, layers=28, intermediate=8192, key_heads=16),
}
"""Billions of parameters -> sizes."""


def made_checkpoints(folder: Path, size: str) -> dict[str, Path]:
    """Folders ``base``, ``ft1``, ``ft2``, ``ft3`` in bfloat16, sharded as Hugging Face writes them.

    Args:
        folder: Where they are, or will be.
        size: A key of ``SIZES``.
    """
    root = folder / f"llama-{size}b"
    paths = {name: root / name for name in ("base", *FINE_TUNES)}
    finished = root / "complete"
    if not finished.exists():
        shutil.rmtree(root, ignore_errors=True)
        for path in paths.values():
            path.mkdir(parents=True)
        _write(paths, SIZES[size])
        finished.touch()
    return paths


def made_tiny(folder: Path, tensors: int) -> dict[str, Path]:
    """Three single files with that many float32 tensors of 16 elements each."""
    root = folder / f"tiny-{tensors}"
    root.mkdir(parents=True, exist_ok=True)
    paths = {name: root / f"{name}.safetensors" for name in FINE_TUNES}
    for number, path in enumerate(paths.values()):
        if not path.exists():
            values = torch.from_numpy(_normal((number, tensors), tensors * 16).reshape(-1, 16))
            save_file({f"layers.{i}.weight": row.clone() for i, row in enumerate(values)}, path)
    return paths


def shard_files(path: Path) -> list[Path]:
    """The files that hold the tensors of a checkpoint."""
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def _write(paths: dict[str, Path], sizes: Llama) -> None:
    shapes = list(sizes.shapes())
    total = sum(2 * int(np.prod(shape)) for _, shape in shapes)
    shards = _shards(shapes, min(LARGEST_SHARD, total // 3 + 1))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        held: dict[str, dict[str, torch.Tensor]] = {name: {} for name in paths}
        for tensor, shape in shard:
            weight_map[tensor] = file
            for name, values in _values(len(weight_map), shape).items():
                held[name][tensor] = values
        for name, path in paths.items():
            save_file(held[name], path / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for path in paths.values():
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        (path / "config.json").write_text(json.dumps(sizes.config(), indent=2))


def _shards(
    shapes: list[tuple[str, tuple[int, ...]]], limit: int
) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = 0
    for name, shape in shapes:
        size = 2 * int(np.prod(shape))
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append((name, shape))
        held += size
    return shards


def _values(index: int, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """One tensor of the base and of every fine-tune."""
    count = int(np.prod(shape))
    base = _normal((index, 0), count) * np.float32(DEVIATION)
    if len(shape) == 1:
        base += 1
    shared = _normal((index, 1), count) * np.float32(DELTA * CORRELATION**0.5)
    made = {"base": base}
    for number, name in enumerate(FINE_TUNES, start=2):
        own = _normal((index, number), count) * np.float32(DELTA * (1 - CORRELATION) ** 0.5)
        made[name] = base + shared + own
    return {
        name: torch.from_numpy(values).to(torch.bfloat16).reshape(shape)
        for name, values in made.items()
    }


def _normal(seed: tuple[int, int], count: int) -> np.ndarray:
    generator = np.random.Generator(np.random.SFC64(seed))
    return generator.standard_normal(count, dtype=np.float32)
