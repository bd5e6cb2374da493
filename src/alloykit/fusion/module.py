"""The fusion as one ``nn.Module``: frozen members, and a trained head over what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from alloykit.errors import InvalidParameter
from alloykit.evaluation.predicting import detect_kind
from alloykit.fusion.features import feature_rows
from alloykit.fusion.head import Source
from alloykit.fusion.reading import (
    ContextSource,
    Sources,
    check_sources,
    floating_tensors,
    input_rows,
    last_of,
    layers_of,
    output_rows,
    require_equal_rows,
    seen,
)
from alloykit.types import Kind, Task

Made = TypeVar("Made", bound="Fusion")


class Fusion(nn.Module):
    """Several trained models that answer as one, through a head that learned whom to believe.

    ``forward`` takes what the members take and returns log-probabilities ``[example, class]``
    (valid logits, so that cross_entropy and argmax work), ``[example, position, class]`` for
    tokens, or values shaped like a member's. The head works in float32 (in float64 where it was
    solved in it), under autocast too.

    Members and head are used, not copied: their parameters stop requiring gradients and they are
    in evaluation mode for good, whatever ``train()`` is called with, so that no BatchNorm of a
    member ever moves. ``frozen_view`` makes members that leave yours as they are. Floating inputs
    go to each member in its own dtype and to its own device.

    Args:
        members: The models, by name or in order.
        head: ``(members' rows, context) -> rows``, as ``FittedHead.module``.
        task: What the members were trained for.
        kinds: What each member returns; found out on the first batch where not given.
        source: "outputs"; "features", the input of each member's last layer, found by running it
            once; or member -> layer, as ``features.watching`` takes it.
        context: "none"; "inputs", all floating inputs, flattened; or "features" of all members.
        made: How the head was made, as JSON values; kept for ``description``.

    Shapes:
        forward: inputs -> [example, class], [example, position, class] or [example, *output]

    Raises:
        MissingInput: No members.
        InvalidParameter: ``kinds``, ``source`` or ``context`` do not fit the members.
        UnknownName: A layer that a member does not have.

    Example:
        >>> class Mean(nn.Module):
        ...     def forward(self, members, context):
        ...         return sum(members) / len(members)
        >>> fusion = Fusion({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}, Mean())
        >>> fusion(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module] | Sequence[nn.Module],
        head: nn.Module,
        *,
        task: Task = "classification",
        kinds: Sequence[Kind] | None = None,
        source: Sources = "outputs",
        context: ContextSource = "none",
        made: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(members, Mapping):
            members = {str(place): member for place, member in enumerate(members)}
        check_sources(members, source, context, kinds)
        self.names = tuple(members)
        self.members = nn.ModuleList(members.values())
        wide = any(tensor.dtype == torch.float64 for tensor in floating_tensors(head))
        self.head = head if wide else head.float()
        self.task: Task = task
        self.kinds: tuple[Kind, ...] | None = tuple(kinds) if kinds else None
        self.source: Source = "outputs" if source == "outputs" else "features"
        self.context: ContextSource = context
        self.layers = layers_of(members, source)
        self.made = dict(made or {})
        self.requires_grad_(False)
        self.train(False)

    @property
    def reads_features(self) -> bool:
        """Whether layers inside of the members are watched."""
        return self.source == "features" or self.context == "features"

    @property
    def reads(self) -> Sources:
        """The source as it was asked for, with the layers that were found since."""
        if self.source == "outputs" or self.layers is None:
            return self.source
        return dict(zip(self.names, self.layers, strict=True))

    def without_unused(self) -> Fusion:
        """The same fusion, members and head shared: every head reads all of its members."""
        return self.remade(Fusion)

    def remade(self, kind: type[Made]) -> Made:
        """The same as that class; members and head are shared."""
        same = kind(
            dict(zip(self.names, self.members, strict=True)),
            self.head,
            task=self.task,
            kinds=self.kinds,
            source=self.reads,
            context=self.context,
            made=self.made,
        )
        same.layers = self.layers
        return same

    def description(self) -> Mapping[str, Any]:
        """What it is made of, as JSON values."""
        return {
            "head": self.made.get("head", type(self.head).__name__),
            "parameters": dict(self.made.get("parameters", {})),
            "chosen": dict(self.made.get("chosen", {})),
            "members": list(self.names),
            "task": self.task,
            "kinds": self.kinds and list(self.kinds),
            "source": self.source,
            "layers": self.layers and list(self.layers),
            "context": self.context,
        }

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Ask the members, and let the head decide."""
        with torch.no_grad():
            rows, context, like = self.rows(*args, **kwargs)
            result: Tensor = precisely(lambda: self.head(rows, context), rows[0])
        return self.shaped(result, like)

    def predict_proba(self, *args: Any, **kwargs: Any) -> Tensor:
        """Probabilities: rows that sum to one.

        Raises:
            InvalidParameter: The task is regression.
        """
        if self.task == "regression":
            raise InvalidParameter("A regression fusion has no probabilities. Call it instead.")
        outputs: Tensor = self(*args, **kwargs)
        return outputs.exp()

    def attention(self, *args: Any, **kwargs: Any) -> Tensor:
        """How much the head listens to each member, ``[row, member]``: rows that sum to one.

        Raises:
            InvalidParameter: The head has no attention.
        """
        attention = getattr(self.head, "attention", None)
        if attention is None:
            raise InvalidParameter(
                f"The head {self.description()['head']} has no attention over members. Fuse with "
                "'attention', 'attention_mean' or 'gated', or look at the reliance."
            )
        with torch.no_grad():
            rows, context, _ = self.rows(*args, **kwargs)
            found: Tensor = precisely(lambda: attention(rows, context), rows[0])
        return found

    def rows(self, *args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """What the head is given for these inputs: members' rows, context, one member's output.

        Gradients flow where the caller lets them; ``forward`` does not.
        """
        self._look(args, kwargs)
        given = [
            seen(member, layer, *args, **kwargs)
            for member, layer in zip(self.members, self._layers(), strict=True)
        ]
        outputs = [output for output, _ in given]
        device = next((t.device for t in floating_tensors(self.head)), outputs[0].device)
        features = [
            feature_rows(member, layer, found, self.task).to(device)
            for member, layer, (_, found) in zip(self.members, self._layers(), given, strict=True)
            if layer is not None and found is not None
        ]
        rows = features
        if self.source == "outputs":
            kinds = self.kinds or ()
            rows = [
                output_rows(output, kind, self.task).to(device)
                for output, kind in zip(outputs, kinds, strict=True)
            ]
        require_equal_rows(rows, self.names)
        context = self._context(features, args, kwargs, outputs[0])
        return rows, context if context is None else context.to(device), outputs[0]

    def train(self, mode: bool = True) -> Fusion:
        """Set the fusion's own flag; members and head stay in evaluation mode."""
        super().train(False)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """The task, what the head reads, and the members."""
        told = f"task={self.task}, source={self.source}, context={self.context}"
        return f"{told}, {', '.join(self.names)}"

    def _layers(self) -> tuple[str | None, ...]:
        nothing = (None,) * len(self.names)
        return self.layers or nothing if self.reads_features else nothing

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out, on the first batch, what the members return and which layers are the last."""
        if self.reads_features and self.layers is None:
            self.layers = tuple(last_of(member, *args, **kwargs) for member in self.members)
        if self.source == "outputs" and self.kinds is None:
            with torch.no_grad():
                outputs = [seen(member, None, *args, **kwargs)[0] for member in self.members]
            self.kinds = tuple(detect_kind(output, self.task) for output in outputs)

    def _context(
        self, features: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor
    ) -> Tensor | None:
        if self.context == "none":
            return None
        if self.context == "features":
            return torch.cat(features, dim=-1)
        positions = like.shape[1] if self.task == "tokens" else 1
        return input_rows((*args, *kwargs.values()), positions)

    def shaped(self, result: Tensor, like: Tensor) -> Tensor:
        """The head's rows in the form of a member's output: positions, or a value's shape."""
        if self.task == "tokens":
            return result.reshape(*like.shape[:2], result.shape[-1])
        if self.task == "regression" and result.shape[-1] == like[0].numel():
            return result.reshape(like.shape)
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fusion:
        """Move or cast the members; the head moves along but stays float32."""
        precise = [tensor.data for tensor in floating_tensors(self.head)]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for value, moved in zip(precise, floating_tensors(self.head), strict=True):
            if moved.dtype != value.dtype:
                moved.data = value.to(moved.device)
        return self


def precisely(call: Callable[[], Tensor], like: Tensor) -> Tensor:
    """The call without autocast: pooling in half precision loses what distinguishes members."""
    device = like.device.type
    # The context is entered only where it matters: torch.export would record it as a step.
    if not torch.is_autocast_enabled(device):
        return call()
    with torch.autocast(device, enabled=False):
        return call()
