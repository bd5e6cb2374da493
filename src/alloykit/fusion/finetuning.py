"""Going on from a trained head: members fine-tuned with it, or fresh inputs in every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.data.batches import Inputs
from alloykit.errors import InvalidParameter
from alloykit.fusion.module import Fusion, precisely
from alloykit.training.history import History
from alloykit.training.loop import train
from alloykit.training.losses import loss_of
from alloykit.training.rows import Rows
from alloykit.training.scoring import Validation
from alloykit.training.settings import Training

FINE_TUNING = Training(epochs=5, learning_rate=1e-4)
"""What ``fuse(finetune=True)`` trains by: small steps, for members that are trained already."""

AUGMENTING = Training(epochs=10, learning_rate=1e-3)
"""What ``fuse(augment=...)`` trains the head by."""


def finetune_fusion(
    fusion: Fusion,
    data: Rows,
    training: Training | None = None,
    *,
    members: bool = True,
    augment: Callable[[Inputs], Inputs] | None = None,
    validation: Validation | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Fusion, History]:
    """Train a copy of a fusion end to end: its head, and copies of its members.

    Use it after the head was trained, when there are some thousand labelled examples: members are
    large, and a few hundred examples are soon memorised. With ``members=False`` only the head
    moves; that is for ``augment``, whose inputs differ in every epoch, so that the members are
    computed anew each time.

    The members stay in evaluation mode while they train: no dropout, and BatchNorm goes on by the
    statistics it has. The fusion that is given, and the members inside it, keep every byte.

    Args:
        fusion: With a head that has parameters.
        data: Inputs and targets.
        training: Steps; small ones by default (5 epochs at 1e-4, or 10 at 1e-3 for the head alone).
        members: Whether the members move too.
        augment: Changes the inputs of a batch.
        validation: Chooses the epoch whose weights are kept; the last one's otherwise.
        progress: Called with (what, steps done, steps in all).

    Returns:
        The trained fusion, frozen again, and how training went.

    Raises:
        InvalidParameter: The head has no parameters to train.
        DataError: The loss became NaN or infinite.
    """
    _require_trainable(fusion)
    training = training or (FINE_TUNING if members else AUGMENTING)
    trained = _Trainable(copy.deepcopy(fusion), members)
    data = data if augment is None else replace(data, augment=augment)
    history = train(
        trained,
        data,
        loss_of(fusion.task),
        training,
        validation=validation,
        progress=progress,
    )
    trained.requires_grad_(False)
    return trained.fusion, history


class _Trainable(nn.Module):
    """A fusion whose ``forward`` lets gradients through."""

    def __init__(self, fusion: Fusion, members: bool) -> None:
        super().__init__()
        self.fusion = fusion
        self.moves_members = members
        for part in (fusion.head, fusion.members) if members else (fusion.head,):
            for parameter in part.parameters():
                parameter.requires_grad_(parameter.is_floating_point())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.moves_members):
            rows, context, like = self.fusion.rows(*args, **kwargs)
        result = precisely(lambda: self.fusion.head(rows, context), rows[0])
        return self.fusion.shaped(result, like)

    def train(self, mode: bool = True) -> _Trainable:
        """Only the head follows: dropout in it may help, a member's BatchNorm must not move."""
        super().train(False)
        self.fusion.head.train(mode)
        self.training = mode
        return self


def _require_trainable(fusion: Fusion) -> None:
    if not any(parameter.is_floating_point() for parameter in fusion.head.parameters()):
        raise InvalidParameter(
            f"The head {fusion.description()['head']} has no parameters that gradients could "
            "train. Use concat, attention, attention_mean, gated or log_pool for fine-tuning and "
            "augmentation."
        )
