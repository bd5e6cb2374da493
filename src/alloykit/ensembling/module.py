"""The ensemble as one ``nn.Module``: frozen members, a rule, and what the rule learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alloykit.ensembling.batched import Forward, batched_forward, loop_forward
from alloykit.ensembling.rule import require_task, shown, starting_state
from alloykit.ensembling.stack import member_stack
from alloykit.errors import InvalidParameter, InvalidWeights, MissingInput
from alloykit.evaluation.predicting import detect_kind
from alloykit.types import EnsembleRule, Kind, State, Task

PREFIX = "rule_"
"""Before the names of the rule's state among the buffers."""


class Ensemble(nn.Module):
    """Several trained models that answer as one.

    ``forward`` takes what the members take and returns what one of them would: log-probabilities
    ``[example, class]`` (valid logits, so that cross_entropy and argmax work), probabilities if
    every member returns probabilities, values for regression. It pools in float32, under autocast
    too. Members whose weight is zero are not run.

    The members are used, not copied: their parameters stop requiring gradients and they are put in
    evaluation mode for good, whatever ``train()`` is called with. Copy them first if you still
    want to train them. Members must not change state that they share with one another.

    Args:
        members: The models, by name or in order.
        rule: How their predictions are combined.
        state: What ``rule.fit`` returned; not needed for rules that learn nothing.
        task: What the members were trained for.
        kinds: What each member returns; found out on the first batch where not given.
        batched: Run members of one architecture as a single call; see ``batched_forward``.

    Shapes:
        forward: inputs -> [example, class], [example, position, class] or [example, *output]

    Raises:
        MissingInput: No members, or a rule that was not fitted.
        InvalidParameter: The rule does not serve the task, or ``kinds`` does not fit the members.
        InvalidWeights: The state is for another number of members.

    Example:
        >>> from alloykit.ensembling.average import average
        >>> ensemble = Ensemble({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}, average())
        >>> ensemble(torch.zeros(2, 4)).exp().sum(-1).round(decimals=5)
        tensor([1., 1.])
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module] | Sequence[nn.Module],
        rule: EnsembleRule,
        state: State | None = None,
        *,
        task: Task = "classification",
        kinds: Sequence[Kind] | None = None,
        batched: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(members, Mapping):
            members = {str(place): member for place, member in enumerate(members)}
        state = dict(state) if state else starting_state(rule, len(members))
        _check(members, rule, state, task, kinds)
        self.names = tuple(members)
        self.members = nn.ModuleList(members.values())
        self.rule = rule
        self.task: Task = task
        self.kinds: tuple[Kind, ...] | None = tuple(kinds) if kinds else None
        self.batched = batched
        self._state_names = tuple(state)
        for name, value in state.items():
            self.register_buffer(PREFIX + name, value.detach().clone().float())
        self._used: tuple[int, ...] | None = None
        self._runner: Forward | None = None
        self.members.requires_grad_(False)
        self.train(False)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    @property
    def state(self) -> State:
        """What the rule learned, in float32: name -> tensor."""
        return {name: self.get_buffer(PREFIX + name) for name in self._state_names}

    @property
    def weights(self) -> tuple[float, ...] | None:
        """One weight per member, where the rule has such."""
        weights = self.state.get("weights")
        return None if weights is None else tuple(weights.tolist())

    @property
    def used(self) -> tuple[int, ...]:
        """Positions of the members that are run: all whose weight is not zero."""
        if self._used is None:
            weights = self.weights
            self._used = tuple(i for i in range(len(self.names)) if weights is None or weights[i])
        return self._used

    def without_unused(self) -> Ensemble:
        """The same ensemble, run member by member (shared), without those whose weight is zero."""
        return Ensemble(
            {self.names[i]: self.members[i] for i in self.used},
            self.rule,
            self._used_state(),
            task=self.task,
            kinds=self.kinds and [self.kinds[i] for i in self.used],
        )

    def description(self) -> dict[str, Any]:
        """What it is made of, as JSON values: rule, parameters, members, weights, task, kinds."""
        return {
            "rule": self.rule.name,
            "parameters": dict(self.rule.parameters),
            "members": [self.names[i] for i in self.used],
            "weights": self.weights and [self.weights[i] for i in self.used],
            "task": self.task,
            "kinds": self.kinds and [self.kinds[i] for i in self.used],
        }

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Combine what the members say to these inputs."""
        with torch.no_grad():
            outputs = self._run(*args, **kwargs)
            if self.kinds is None:
                self._detect(outputs)
            pooled = _without_autocast(self._pool, outputs)
        return pooled.exp() if self._returns_probabilities() else pooled

    def predict_proba(self, *args: Any, **kwargs: Any) -> Tensor:
        """Probabilities, whatever the members return: rows that sum to one.

        Raises:
            InvalidParameter: The task is regression.
        """
        if self.task == "regression":
            raise InvalidParameter("A regression ensemble has no probabilities. Call it instead.")
        outputs: Tensor = self(*args, **kwargs)
        return outputs if self._returns_probabilities() else outputs.exp()

    def train(self, mode: bool = True) -> Ensemble:
        """Set the ensemble's own flag; the members stay in evaluation mode."""
        super().train(False)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """The task, the rule, and the members with their weights."""
        weights = self.weights
        members = (
            name if weights is None else f"{name}={weights[i]:.4g}"
            for i, name in enumerate(self.names)
        )
        return f"task={self.task}, rule={shown(self.rule)}, {', '.join(members)}"

    def _pool(self, outputs: Sequence[Tensor]) -> Tensor:
        kinds = [(self.kinds or ())[i] for i in self.used]
        names = [self.names[i] for i in self.used]
        stack = member_stack(outputs, kinds, self.task, names=names)
        return self.rule.combine(stack, self._used_state())

    def _used_state(self) -> State:
        state = self.state
        if "weights" in state and len(self.used) < len(self.names):
            state["weights"] = state["weights"][list(self.used)]
        return state

    def _detect(self, outputs: Sequence[Tensor]) -> None:
        kinds: list[Kind] = ["values" if self.task == "regression" else "logits"] * len(self.names)
        for place, output in zip(self.used, outputs, strict=True):
            kinds[place] = detect_kind(output, self.task)
        self.kinds = tuple(kinds)

    def _returns_probabilities(self) -> bool:
        return self.kinds is not None and all(self.kinds[i] == "probabilities" for i in self.used)

    def _run(self, *args: Any, **kwargs: Any) -> Sequence[Tensor]:
        if self._runner is None:
            build: Callable[..., Forward] = batched_forward if self.batched else loop_forward
            self._runner = build([self.members[i] for i in self.used])
        return self._runner(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has members of its own, and must not run those of the original.
        return {**self.__dict__, "_runner": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Ensemble:
        """Move or cast the members; the rule's state moves along but stays float32."""
        precise = self.state
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in precise.items():
            moved = self.get_buffer(PREFIX + name)
            if moved.dtype != torch.float32:
                setattr(self, PREFIX + name, value.to(moved.device))
        _forget(self)
        return self


def _forget(ensemble: Ensemble, *_: Any) -> None:
    """What was derived from the members' tensors and the weights no longer holds."""
    ensemble._used = None
    ensemble._runner = None


def _check(
    members: Mapping[str, nn.Module],
    rule: EnsembleRule,
    state: State,
    task: Task,
    kinds: Sequence[Kind] | None,
) -> None:
    if not members:
        raise MissingInput("An ensemble needs at least one member.")
    require_task(rule, task)
    if rule.fit is not None and not state:
        raise MissingInput(
            f"The rule {shown(rule)} learns from validation data: "
            "pass state=rule.fit(stack, targets)."
        )
    if kinds is not None and len(kinds) != len(members):
        raise InvalidParameter(f"{len(kinds)} kinds were given for {len(members)} members.")
    for name in ("weights", "class_weights"):
        if name in state and len(state[name]) != len(members):
            raise InvalidWeights(
                f"The state of {rule.name} has weights for {len(state[name])} members, and there "
                f"are {len(members)}."
            )


def _without_autocast(pool: Callable[[Any], Tensor], outputs: Sequence[Tensor]) -> Tensor:
    device = outputs[0].device.type
    # The context is entered only where it matters: torch.export would record it as a step.
    if not torch.is_autocast_enabled(device):
        return pool(outputs)
    with torch.autocast(device, enabled=False):
        return pool(outputs)
