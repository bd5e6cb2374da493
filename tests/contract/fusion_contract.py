"""What every fusion head promises, as functions: ``check_*(factory, case)`` raise on a breach."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from alloykit.fusion.head import FittedHead, FusionHead, HeadData, HeadShape, Source
from alloykit.registry import fusion_heads
from alloykit.types import Task

Factory = Callable[[], FusionHead]
EXACT = {"rtol": 1e-5, "atol": 1e-5}


@dataclass(frozen=True)
class Case:
    """What members gave on the same rows; the second of them is right wherever it is sure."""

    data: HeadData
    shape: HeadShape

    @property
    def has_classes(self) -> bool:
        return self.shape.task != "regression"


def case(
    task: Task,
    source: Source = "outputs",
    *,
    seed: int = 0,
    members: int = 3,
    rows: int = 60,
    outputs: int = 3,
    context: int = 2,
    scale: float = 1.0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    widths = tuple(outputs if source == "outputs" else outputs + place for place in range(members))
    given = [scale * draw(rows, width) for width in widths]
    best = given[min(1, members - 1)]
    if task == "regression":
        targets = best[:, :outputs] + 0.05 * scale * draw(rows, outputs)
    else:
        targets = best[:, :outputs].argmax(1)
        targets[:2] = torch.tensor([0, 1])
        if source == "outputs":
            given = [(4 * values).log_softmax(-1) for values in given]
    numbers = draw(rows, context) if context else None
    shape = HeadShape(widths, outputs, task, context, source)
    return Case(HeadData(tuple(given), targets, numbers), shape)


def fitted(factory: Factory, given: Case) -> FittedHead:
    return factory().fit(given.data, given.shape)


def answer(module: nn.Module, given: Case) -> Tensor:
    with torch.no_grad():
        return module(given.data.members, given.data.context)


def comparable(outputs: Tensor, given: Case) -> Tensor:
    """Probabilities for classes: their differences mean the same for any confidence."""
    return outputs.exp() if given.has_classes else outputs


def loss(outputs: Tensor, given: Case) -> float:
    if given.has_classes:
        return float(-outputs.gather(1, given.data.targets[:, None]).mean())
    return float((outputs - given.data.targets).square().mean())


def check_output(factory: Factory, given: Case) -> None:
    result = answer(fitted(factory, given).module, given)
    assert result.dtype == torch.float32
    assert result.shape == (len(given.data.targets), given.shape.outputs)
    assert bool(torch.isfinite(result).all())
    if given.has_classes:
        assert_close(result.exp().sum(-1), torch.ones(len(result)), **EXACT)


def check_module_is_ready(factory: Factory, given: Case) -> None:
    """In eval mode, and its tensors can be kept and loaded into what ``build`` makes."""
    head = factory()
    module = head.fit(given.data, given.shape).module
    assert not any(part.training for part in module.modules())
    again = head.build(given.shape)
    again.load_state_dict(copy.deepcopy(module.state_dict()), strict=True)
    assert torch.equal(answer(again.eval(), given), answer(module, given))


def check_inputs_untouched(factory: Factory, given: Case) -> None:
    kept = copy.deepcopy(given.data)
    answer(fitted(factory, given).module, given)
    assert all(map(torch.equal, given.data.members, kept.members))
    assert torch.equal(given.data.targets, kept.targets)
    assert kept.context is None or torch.equal(given.data.context, kept.context)


def check_no_gradients_to_members(factory: Factory, given: Case) -> None:
    """Members under a caller's graph are not trained through, with gradients on or off."""
    members = tuple(member.clone().requires_grad_() for member in given.data.members)
    with torch.no_grad():
        module = fitted(factory, Case(replace(given.data, members=members), given.shape)).module
    assert all(member.grad is None for member in members)
    assert torch.equal(answer(module, given), answer(fitted(factory, given).module, given))


def check_same_twice(factory: Factory, given: Case) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = answer(fitted(factory, given).module, given)
    assert torch.equal(before, torch.get_rng_state()), "torch's global random state was used"
    assert (numpy_before == np.random.get_state()[1]).all(), "numpy's was used"  # noqa: NPY002
    torch.manual_seed(int(before[:4].sum()) + 1)
    second = answer(fitted(factory, given).module, given)
    torch.set_rng_state(before)
    assert torch.equal(first, second)


def check_rebuilt(factory: Factory, given: Case) -> None:
    """From its name and its parameters, through JSON, it is the same head."""
    head = factory()
    again = fusion_heads.build(head.name, **json.loads(json.dumps(dict(head.parameters))))
    assert (again.tasks, again.sources, again.context) == (head.tasks, head.sources, head.context)
    module, other = (h.fit(given.data, given.shape).module for h in (head, again))
    assert torch.equal(answer(module, given), answer(other, given))


def check_facts_are_json(factory: Factory, given: Case) -> None:
    found = fitted(factory, given)
    kept = json.loads(json.dumps([dict(found.chosen), [dict(epoch) for epoch in found.history]]))
    assert kept == [dict(found.chosen), [dict(epoch) for epoch in found.history]]


def check_rows_apart(factory: Factory, given: Case) -> None:
    """What is said of one row does not depend on the others in the batch."""
    module = fitted(factory, given).module
    first = HeadData(
        tuple(member[:1] for member in given.data.members),
        given.data.targets[:1],
        None if given.data.context is None else given.data.context[:1],
    )
    alone = answer(module, Case(first, given.shape))
    together = answer(module, given)[:1]
    assert_close(comparable(alone, given), comparable(together, given), **EXACT)


def check_unknown_context_is_ignored(factory: Factory, given: Case) -> None:
    if factory().context != "none" or given.data.context is None:
        return
    bare = Case(replace(given.data, context=None), replace(given.shape, context=0))
    assert torch.equal(
        answer(fitted(factory, bare).module, bare), answer(fitted(factory, given).module, given)
    )


def check_believing_sums_to_one(factory: Factory, given: Case) -> None:
    module = fitted(factory, given).module
    if not hasattr(module, "attention"):
        return
    with torch.no_grad():
        shares = module.attention(given.data.members, given.data.context)
    assert shares.shape == (len(given.data.targets), len(given.shape.widths))
    assert bool((shares >= 0).all())
    assert_close(shares.sum(1), torch.ones(len(shares)), **EXACT)


CHECKS = (
    check_output,
    check_module_is_ready,
    check_inputs_untouched,
    check_no_gradients_to_members,
    check_same_twice,
    check_rebuilt,
    check_facts_are_json,
    check_rows_apart,
    check_unknown_context_is_ignored,
    check_believing_sums_to_one,
)
