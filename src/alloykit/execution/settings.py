"""The parameters and weights of a merge as given, and what they come to at one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alloykit.execution.schedules import ByName, Layers, resolved, varies


@dataclass(frozen=True)
class Settings:
    """Parameters and weights, of which some may be schedules over the tensors.

    Attributes:
        given: The parameters as given.
        given_weights: The weights as given, or None.
        layers: Where each tensor lies in the depth of the model.
        usual: Name of the tensor whose values stand for the whole model.
        varies: Whether any of them differs by tensor.
    """

    given: Mapping[str, Any]
    given_weights: Sequence[Any] | None
    layers: Layers
    usual: str
    varies: bool

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        parameters: Mapping[str, Any],
        weights: Sequence[Any] | None,
    ) -> Settings:
        """The settings for tensors of these names."""
        parameters = {
            key: ByName(value) if isinstance(value, Mapping) else value
            for key, value in parameters.items()
        }
        values = [*parameters.values(), *(weights or ())]
        differs = any(map(varies, values))
        layers = Layers.of(names if differs else ())
        return cls(parameters, weights, layers, next(iter(names), ""), differs)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that stand for the whole model."""
        return self.at(self.usual)[0]

    @property
    def weights(self) -> list[Any] | None:
        """The weights that stand for the whole model."""
        return self.at(self.usual)[1]

    def at(self, name: str) -> tuple[dict[str, Any], list[Any] | None]:
        """Parameters and weights at the tensor of that name."""
        weights = self.given_weights
        if not self.varies:
            return dict(self.given), None if weights is None else list(weights)
        return (
            {key: resolved(value, name, self.layers) for key, value in self.given.items()},
            None if weights is None else resolved(list(weights), name, self.layers),
        )
