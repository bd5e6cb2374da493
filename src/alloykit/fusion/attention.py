"""Attention over members."""

from __future__ import annotations

from alloykit.fusion.attending import attention_layer
from alloykit.fusion.contract import EVERY_TASK, Layer, fusion_head
from alloykit.fusion.feeding import FeedName
from alloykit.training.settings import Training


@fusion_head(tasks=EVERY_TASK, context="optional")
def attention(
    heads: int = 1,
    context: bool = False,
    width: int = 32,
    batch_size: int = 128,
    feed: FeedName | None = None,
    epochs: int = 200,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.01,
    patience: int = 30,
    seed: int = 0,
) -> Layer:
    """Attention."""
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        patience=patience,
        seed=seed,
    )
    return attention_layer(
        "attention", heads=heads, with_mean=False, by_context=context, width=width, feed=feed, training=training
    )
