"""Fisher information of a model's parameters on data: the exact diagonal, example by example."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from alloykit.data.batches import Inputs, length, placed, transform
from alloykit.data.examples import Examples
from alloykit.data.outputs import logits_of
from alloykit.data.splits import IGNORED
from alloykit.errors import DataError, InvalidParameter
from alloykit.evaluation.predicting import LOWEST, detect_kind, predict, unwrapped
from alloykit.numerics import compute_dtype, is_averaged
from alloykit.types import Kind, Task

Labels = Literal["exact", "sampled"]
Progress = Callable[[str, int, int], None]

GRADIENT_BYTES = 16 << 20
"""Room for the gradients that are computed at a time: about what stays in cache."""

Batch = tuple[Inputs, Tensor, Tensor]
"""Inputs, targets and noise of the same examples."""


def fisher_diagonal(
    model: nn.Module,
    examples: Examples,
    *,
    task: Task = "classification",
    labels: Labels | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information matrix of every parameter, averaged over examples.

    F = 1/n Σᵢ Σ_c p(c | xᵢ) · (∂ log p(c | xᵢ) / ∂θ)², elementwise

    The labels are the model's own: targets are not looked at, except for which positions of
    tokens are scored. "sampled" draws one label (for tokens one per position) from the model
    instead of summing over all: the same on average, for one gradient per example. For regression
    the model is taken as the mean of a Gaussian of variance 1.

    Args:
        model: Run in evaluation mode, in float32 at least; it is not changed.
        examples: Some hundred examples of what the model is for.
        task: How its outputs are read.
        labels: "exact" or "sampled"; by default exact, and sampled for tokens, whose labels are
            too many to sum over.
        seed: Of the sampled labels.
        progress: Called after every batch with (what, examples done, examples in all).

    Returns:
        Name of each parameter -> its diagonal, float32, shaped like the parameter, on the CPU.
        A wrapper's prefix is left out; of tied names only the first is there.

    Raises:
        InvalidParameter: Exact labels for tokens.
        DataError: No examples, or gradients that are not finite.

    Example:
        >>> from alloykit.data.examples import as_examples
        >>> layer = nn.Linear(1, 2, bias=False)
        >>> layer.weight.data = torch.tensor([[0.0], [0.0]])
        >>> found = fisher_diagonal(layer, as_examples((torch.tensor([[2.0]]), [0]), "train"))
        >>> found["weight"].round(decimals=3).tolist()
        [[1.0], [1.0]]

    References:
        Matena, Raffel: Merging Models with Fisher-Weighted Averaging, 2021, arXiv:2111.09832. The
        squares are taken per example and class, as there; squaring the gradient of a whole batch,
        as is common, adds cross terms.
    """
    chosen = labels or ("sampled" if task == "tokens" else "exact")
    if chosen not in ("exact", "sampled") or (chosen == "exact" and task == "tokens"):
        raise InvalidParameter(
            "The labels are 'exact' or 'sampled', and for tokens 'sampled' only: exact ones would "
            f"take a gradient for every position and word. Got {chosen!r} for {task}."
        )
    module = _copied(model)
    kind = detect_kind(predict(module, examples.take(256)), task)
    score = _Score(module, task, chosen, kind)
    totals = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in score.parameters.items()}
    draw, done, rows = np.random.default_rng(seed), 0, 0
    shifts: dict[str, Tensor] | None = None
    for inputs, targets in examples.batches():
        noise = torch.from_numpy(draw.random((len(targets), *score.noise_shape(targets))))
        batch: Any = tuple(placed(each, module) for each in (inputs, targets, noise))
        if shifts is None:
            shifts, rows = _outer_products(score, batch)
        for name, squares in _summed_squares(score, batch, shifts, rows):
            totals[name] += squares
        done += len(targets)
        if progress is not None:
            progress("Fisher information", done, len(examples))
    return {name: _usable(name, total / done) for name, total in totals.items()}


class _Score:
    """One example -> numbers whose squared gradients add up to its Fisher information.

    The outputs of linear layers can be shifted: the gradient of a shift is what is needed of a
    layer that sees one position per example, whose gradient is its outer product with the input.
    """

    def __init__(self, module: nn.Module, task: Task, labels: Labels, kind: Kind) -> None:
        self.module, self.task, self.labels, self.kind = module, task, labels, kind
        every = dict(module.named_parameters())
        self.parameters = {n: p.detach() for n, p in every.items() if is_averaged(p.dtype)}
        self.shifts: Mapping[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        for name, layer in module.named_modules():
            if type(layer) is nn.Linear:
                layer.register_forward_hook(partial(self._called, name))

    def noise_shape(self, targets: Tensor) -> tuple[int, ...]:
        """What is drawn for every example."""
        return (0,) if self.labels == "exact" else (*targets.shape[1:], 1)

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        shifts: Mapping[str, Tensor],
        inputs: Inputs,
        target: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The numbers [row], and what the linear layers saw, [1, ..., in]."""
        self.shifts, self.seen = shifts, {}
        alone = transform(inputs, lambda tensor: tensor[None])
        kwargs = alone if isinstance(alone, dict) else {}
        args = alone if isinstance(alone, tuple) else () if kwargs else (alone,)
        given = functional_call(self.module, dict(parameters), args, kwargs)
        return self._rows(logits_of(given)[0], target, noise), self.seen

    def _called(self, name: str, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.seen[name] = given[0]
        return output + self.shifts[name] if name in self.shifts else output

    def _rows(self, outputs: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        if self.task == "regression":
            if self.labels == "exact":
                return outputs.reshape(-1)
            normal: Tensor = torch.special.ndtri(noise.clamp(1e-7, 1.0 - 1e-7))
            return (outputs.reshape(-1) * normal.reshape(-1)).sum()[None]
        logs = _log_probabilities(outputs, self.kind)
        if self.labels == "exact":
            # √p · ∂ log p squares to p · (∂ log p)².
            return logs * (0.5 * logs.detach()).exp()
        below = logs.detach().exp().cumsum(-1) < noise
        drawn = below.sum(-1, keepdim=True).clamp(max=logs.shape[-1] - 1)
        picked = logs.gather(-1, drawn)[..., 0]
        if self.task == "tokens":
            picked = picked * (target != IGNORED)
        return picked.sum()[None]


def _log_probabilities(outputs: Tensor, kind: Kind) -> Tensor:
    """Those of one example, with gradients: [class], or [position, class]."""
    if outputs.dim() == 0 or outputs.shape == (1,):
        single = outputs.reshape(1)
        other = 1.0 - single if kind == "probabilities" else torch.zeros_like(single)
        outputs = torch.cat([other, single])
    if kind == "probabilities":
        outputs = outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
    return outputs.log_softmax(-1).clamp_min(LOWEST)


def _summed_squares(
    score: _Score, batch: Batch, shifts: Mapping[str, Tensor], rows: int
) -> Iterator[tuple[str, Tensor]]:
    """Σ over examples and rows of squared gradients, by parameter, some examples at a time."""
    rest = {n: p for n, p in score.parameters.items() if n.rpartition(".")[0] not in shifts}
    size = sum(t.numel() * t.element_size() for t in (*rest.values(), *shifts.values()))
    at_once = max(1, GRADIENT_BYTES // max(1, size))
    jacobian = jacrev(score, (0, 1), has_aux=True, chunk_size=min(at_once, rows) or None)
    every = vmap(jacobian, in_dims=(None, None, 0, 0, 0))
    step = max(1, at_once // max(1, rows))
    for start in range(0, length(batch[0]), step):
        some = _examples(batch, slice(start, start + step))
        try:
            (gradients, errors), seen = every(rest, shifts, *some)
        except RuntimeError:
            # Models that branch on their inputs, or write in place, take one example at a time.
            yield from _one_by_one(score, some)
            continue
        for name, each in gradients.items():
            yield name, each.square().sum((0, 1), dtype=torch.float64)
        for name, each in errors.items():
            squares = each.square().sum(1, dtype=torch.float64)
            yield f"{name}.weight", squares.T @ seen[name][:, 0].double().square()
            if f"{name}.bias" in score.parameters:
                yield f"{name}.bias", squares.sum(0)


def _outer_products(score: _Score, batch: Batch) -> tuple[dict[str, Tensor], int]:
    """Layers whose weight's gradient is (gradient of their output) · inputᵀ, and number of rows.

    They see one position of every example, and their parameters are used there and nowhere else.

    Returns:
        Name of the layer -> a shift of zero, and the number of rows of an example.
    """
    own = {name: tensor.clone().requires_grad_() for name, tensor in score.parameters.items()}
    rows, seen = score(own, {}, *_examples(batch, 0))
    uses = _uses(rows)
    shifts = {}
    for name, inputs in seen.items():
        parts = [own[n] for n in (f"{name}.weight", f"{name}.bias") if n in own]
        single = inputs.shape[:-1] == (1,) and f"{name}.weight" in own
        if single and all(uses[id(part)] == 1 for part in parts):
            shifts[name] = parts[0].detach().new_zeros(len(parts[0]))
    return shifts, len(rows)


def _uses(result: Tensor) -> Counter[int]:
    """How many operations that led to a result read each leaf, by the leaf's id."""
    found: Counter[int] = Counter()
    stack: list[Any] = [result.grad_fn] if result.grad_fn is not None else []
    known = set(stack)
    while stack:
        for node, _ in stack.pop().next_functions:
            if hasattr(node, "variable"):
                found[id(node.variable)] += 1
            elif node is not None and node not in known:
                known.add(node)
                stack.append(node)
    return found


def _one_by_one(score: _Score, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    own = {name: tensor.clone().requires_grad_() for name, tensor in score.parameters.items()}
    for index in range(length(batch[0])):
        for row in score(own, {}, *_examples(batch, index))[0]:
            found = torch.autograd.grad(
                row, list(own.values()), retain_graph=True, allow_unused=True
            )
            for name, each in zip(own, found, strict=True):
                if each is not None:
                    yield name, each.double().square()


def _examples(batch: Batch, which: int | slice) -> Batch:
    inputs, targets, noise = batch
    return transform(inputs, lambda tensor: tensor[which]), targets[which], noise[which]


def _copied(model: nn.Module) -> nn.Module:
    """The model's own copy to compute with, in evaluation mode and in compute dtypes."""
    module = copy.deepcopy(unwrapped(model)).eval().requires_grad_(False)
    for tensor in (*module.parameters(), *module.buffers()):
        if is_averaged(tensor.dtype):
            tensor.data = tensor.data.to(compute_dtype(tensor.dtype))
    return module


def _usable(name: str, diagonal: Tensor) -> Tensor:
    narrow = diagonal.to("cpu", torch.float32)
    if not bool(torch.isfinite(narrow).all()):
        raise DataError(
            f"The Fisher information of {name} is not finite. Look at the inputs and at the "
            "model's parameters: a gradient of some example is NaN or infinite."
        )
    return narrow
