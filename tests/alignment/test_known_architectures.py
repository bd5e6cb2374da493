"""Architectures that others wrote: torch's own layers, and classes of Hugging Face."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from alloykit.alignment.deriving import permutation_groups
from alloykit.alignment.exporting import answers
from alloykit.alignment.permuting import drawn
from alloykit.alignment.proof import permute

TOKENS = torch.arange(12).reshape(2, 6)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


def require(model, inputs, expected):
    """The sizes of the groups and how often they come; and outputs that stay."""
    model.eval()
    groups = permutation_groups(model, inputs)
    assert Counter(group.size for group in groups.groups) == expected
    assert groups.unknown == ()
    with torch.no_grad():
        before = answers(model(inputs))
        permute(model, groups, drawn(groups, 1))
        for old, new in zip(before, answers(model(inputs)), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-5)
    return groups


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(5, 24)
        layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.pool = nn.MultiheadAttention(24, 3, batch_first=True)
        self.out = nn.Linear(24, 2)

    def forward(self, x):
        x = self.encoder(self.into(x))
        return self.out(self.pool(x, x, x)[0]).mean(1)


def test_encoder_of_torch():
    # The stream and what the pool makes of it; per layer heads, dimensions and hidden units;
    # heads and dimensions of the pool.
    expected = {24: 2, 4: 2, 6: 2, 40: 2, 3: 1, 8: 1}
    require(Encoder(), torch.linspace(-1, 1, 50).reshape(2, 5, 5), expected)


class Vae(nn.Module):
    """Up and down again, with a skip connection, in one dimension."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv1d(2, 6, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(3, 6)
        self.up = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1)
        self.skip = nn.Conv1d(2, 4, 1)
        self.out = nn.Conv1d(8, 1, 1)

    def forward(self, x):
        inner = self.up(self.norm(self.down(x)).relu())
        return self.out(torch.cat([inner, self.skip(x)], 1).relu())


def test_up_and_down_with_a_skip_connection():
    require(Vae(), torch.linspace(-1, 1, 32).reshape(2, 2, 8), {3: 1, 2: 1, 4: 1})


def test_resnet_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"
    )
    # Two streams, and the inside of four blocks.
    require(transformers.ResNetForImageClassification(config), IMAGES, {8: 3, 16: 3})


def test_bert_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        vocab_size=50,
    )  # fmt: skip
    per_layer = {4: 2, 6: 4, 40: 2}
    require(transformers.BertForSequenceClassification(config), TOKENS, {24: 2, **per_layer})
    # Its last hidden states are an output, and stay.
    require(transformers.BertModel(config), TOKENS, per_layer)


def test_vit_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        image_size=16, patch_size=4,
    )  # fmt: skip
    require(transformers.ViTForImageClassification(config), IMAGES, {24: 1, 4: 2, 6: 4, 40: 2})


def test_llama_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, vocab_size=50,
    )  # fmt: skip
    # Rotary embeddings keep the dimensions of queries and keys; those of values are free.
    groups = require(transformers.LlamaForCausalLM(config), TOKENS, {24: 1, 2: 4, 6: 2, 40: 2})
    assert groups["model.layers.0.self_attn.v_proj (inside blocks of 6)"].size == 6


def test_gpt2_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=4, vocab_size=50, n_positions=16, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    # One layer makes queries, keys and values: their dimensions are permuted alike.
    groups = require(transformers.GPT2LMHeadModel(config), TOKENS, {24: 1, 4: 2, 6: 2, 96: 2})
    stream = {place.tensor for place in groups["transformer.wte"].axes}
    assert {"transformer.wte.weight", "lm_head.weight"} < stream
