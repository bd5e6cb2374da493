"""What a named layer gives, of the student while it trains and of the teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alloykit.data.batches import Inputs, forward, parts, placed
from alloykit.distillation.teacher import digest_of
from alloykit.errors import DataError, InvalidParameter, did_you_mean, listing
from alloykit.evaluation.freezing import frozen_view
from alloykit.evaluation.predicting import evaluating
from alloykit.types import Task


def layer_of(module: nn.Module, name: str, whose: str) -> nn.Module:
    """The layer of that name, as ``named_modules`` names it.

    Raises:
        InvalidParameter: There is none; those that there are, are listed.

    Example:
        >>> layer_of(nn.Sequential(nn.Linear(2, 1)), "0", "student")
        Linear(in_features=2, out_features=1, bias=True)
    """
    layers: dict[str, nn.Module] = {n: layer for n, layer in module.named_modules() if n}
    if name not in layers:
        names = list(layers)
        lines = [f"{n}: {type(layer).__name__}" for n, layer in layers.items()]
        raise InvalidParameter(
            f"The {whose} has no layer {name!r}.{did_you_mean(name, names)} "
            f"It has:\n{listing(lines, 30)}"
        )
    return layers[name]


def pooled_features(features: Any, layer: str) -> Tensor:
    """One row per example: images are averaged over positions, and so are sequences.

    Shapes:
        [example, width] and [example] as they are; [example, position, width] -> [example, width];
        [example, channel, *position] -> [example, channel]

    Raises:
        DataError: The layer gives something else than a tensor.
    """
    if isinstance(features, tuple) and features:
        features = features[0]
    if not isinstance(features, Tensor) or features.dim() == 0:
        raise DataError(
            f"The layer {layer!r} gives a {type(features).__name__}, not a tensor with one row "
            "per example. Name another layer."
        )
    if features.dim() == 1:
        return features[:, None]
    if features.dim() == 3:
        return features.mean(1)
    return features.flatten(2).mean(2) if features.dim() > 3 else features


class LayerOutput:
    """The features of a frozen teacher at a named layer, for losses that compare features.

    Args:
        module: The teacher; it is never changed.
        layer: A name of ``module.named_modules()``.

    Raises:
        InvalidParameter: There is no such layer.

    Example:
        >>> LayerOutput(nn.Sequential(nn.ReLU(), nn.Flatten()), "0")(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
    """

    task: Task = "regression"

    def __init__(self, module: nn.Module, layer: str) -> None:
        self.layer = layer
        self._module = frozen_view(module)
        self._given: Any = None
        layer_of(self._module, layer, "teacher").register_forward_hook(self._keep)

    def __call__(self, inputs: Inputs, targets: Tensor | None = None, /) -> Tensor:
        """Features ``[example, width]`` on the device of the inputs, in float32."""
        device = parts(inputs)[0].device
        with evaluating(self._module), torch.autocast(device.type, enabled=False):
            forward(self._module, placed(inputs, self._module))
        found, self._given = pooled_features(self._given, self.layer), None
        return found.to(device, torch.float32)

    def to(self, device: torch.device | str) -> LayerOutput:
        """Move it, not your model; returns itself."""
        self._module.to(device)
        return self

    def identity(self) -> dict[str, Any]:
        """The digest of the teacher, and the layer."""
        return {"members": {"teacher": digest_of(self._module)}, "layer": self.layer}

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._given = output


class Learner(nn.Module):
    """A student with what it needs while it learns: a hook on a layer, a map to other widths.

    Args:
        student: The model to train.
        layer: A name of ``student.named_modules()`` whose features are compared; "" for none.

    Raises:
        InvalidParameter: There is no such layer.

    Example:
        >>> learner = Learner(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "0")
        >>> learner(torch.zeros(4, 2)).shape, learner.features.shape
        (torch.Size([4, 1]), torch.Size([4, 3]))
    """

    def __init__(self, student: nn.Module, layer: str = "") -> None:
        super().__init__()
        self.student = student
        self.layer = layer
        self.map: nn.Linear | None = None
        self.features: Tensor | None = None
        self._handle: Any = None
        self._given: Any = None
        if layer:
            self._handle = layer_of(student, layer, "student").register_forward_hook(self._keep)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student's outputs; its features are put aside."""
        outputs = self.student(*args, **kwargs)
        if self.layer:
            features, self._given = pooled_features(self._given, self.layer), None
            self.features = features if self.map is None else self.map(features)
        return outputs

    def map_to(self, width: int, seed: int) -> None:
        """Learn a linear map from the features, as wide as they were last, to another width."""
        if self.features is None:
            raise DataError("The student has to run once before its features can be mapped.")
        features = self.features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.map = nn.Linear(features.shape[1], width)
        self.map.to(features.device, features.dtype)

    def close(self) -> nn.Module:
        """The student without the hook."""
        if self._handle is not None:
            self._handle.remove()
        self.features = self._given = None
        return self.student

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._given = output
