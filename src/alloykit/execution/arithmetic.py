"""What a plan computes: any range of any tensor of the result, the same bits however it is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError
from alloykit.execution import fused
from alloykit.execution.inputs import Inputs
from alloykit.execution.masks import Fixed, cut_mask
from alloykit.execution.plan import Plan, Step
from alloykit.execution.problems import Problems, unusable
from alloykit.execution.reading import AHEAD, Window
from alloykit.execution.scanning import ModelScan, Read, TensorScan, shaped, slice_numel
from alloykit.numerics import SAFE_SQUARES, SMALL_VECTOR, compute_dtype, promoted
from alloykit.types import GRAIN, Checkpoint, MergeMethod, TensorGroup, TensorSpec

BASE = -1
"""The position that stands for the base, among those of the members."""


class Arithmetic:
    """Computes ranges of the result of a plan.

    Arithmetic is in float32 (float64 where a member is), with one rounding to the output dtype.
    Infinities are copied where all members agree on them; any other infinity or NaN, in a member
    or made by the method or the output dtype, is a problem.

    Args:
        plan: What ``plan_merge`` decided.
        inputs: The checkpoints.
        device: Where the arithmetic is done.
    """

    def __init__(self, plan: Plan, inputs: Inputs, device: str = "cpu") -> None:
        self.plan = plan
        self.inputs = inputs
        self.device = torch.device(device)
        self.problems = Problems()
        self._specs = {i: self.source(i).specs() for i in range(len(inputs.members))}
        if inputs.base is not None:
            self._specs[BASE] = inputs.base.specs()
        self._check_shapes()
        # By position in memory: statistics may share names, as their models may.
        self.stats_names = {
            id(source): frozenset(source.specs())
            for sources in inputs.stats.values()
            for source in sources
        }
        self._methods: dict[str, MergeMethod] = {}
        self._steps: dict[str, Merged] = {}

    def _check_shapes(self) -> None:
        for specs, source in zip(self._specs.values(), self._every(), strict=True):
            for step in self.plan.steps:
                found = specs.get(step.name)
                if found is None or found.shape != step.shape:
                    shape = "is missing" if found is None else f"has the shape {list(found.shape)}"
                    raise CheckpointError(
                        f"{shown(step.name)} of {shown(source.id)} {shape}; the plan was made for "
                        f"{list(step.shape)}. Plan anew."
                    )

    def _every(self) -> list[Checkpoint]:
        return [self.source(position) for position in self._specs]

    def source(self, position: int) -> Checkpoint:
        """The member at that position, or the base."""
        source = self.inputs.base if position == BASE else self.inputs.members[position]
        assert source is not None
        return source

    def spec(self, position: int, name: str) -> TensorSpec:
        """The spec of a tensor of the member at that position."""
        return self._specs[position][name]

    def merged(self, step: Step) -> Merged:
        """The arithmetic of one step of the action "merge"."""
        if step.name not in self._steps:
            self._steps[step.name] = Merged(self, step)
        return self._steps[step.name]

    def method(self, step: Step, present: tuple[int, ...]) -> MergeMethod:
        """The method with the parameters of that step, for the members that take part in it."""
        parameters = {**self.plan.parameters, **step.parameters}
        key = repr((present, sorted(parameters.items())))
        if key not in self._methods:
            plain = self.plan.build_method(step)
            own = {
                name: [value[i] for i in present]
                for name, value in parameters.items()
                if name in plain.per_member and isinstance(value, list)
            }
            self._methods[key] = self.plan.build_method(replace(step, parameters=parameters | own))
        return self._methods[key]

    @cached_property
    def ordered(self) -> bool:
        """Whether the order of the members carries meaning."""
        return self.plan.build_method().ordered

    @cached_property
    def model_state(self) -> Any:
        """The state of a survey that goes over the whole model."""
        steps = [self.merged(step) for step in self.plan.steps if step.action == "merge"]
        survey = steps[0].method.survey
        assert survey is not None
        return survey(ModelScan([step.scan() for step in steps]))

    def counting(self, step: Step) -> list[int]:
        """Positions of the members of weight, and of the base."""
        weights = self.weights(step)
        positions = [i for i, weight in enumerate(weights) if weight]
        return [*positions, *([BASE] if self.inputs.base is not None else [])]

    def weights(self, step: Step) -> tuple[float, ...]:
        """One per member."""
        return self.plan.weights if step.weights is None else step.weights

    def resolve(self, step: Step, start: int, out: Tensor) -> None:
        """Integer and boolean tensors: the common value, or the maximum of counters."""
        members = [i for i in self.counting(step) if i != BASE]
        stop = start + out.numel()
        blocks = [self.source(i).read(step.name, start=start, stop=stop) for i in members]
        if step.action == "maximum":
            # torch has no maximum of wide unsigned integers.
            out.copy_(torch.stack([block.long() for block in blocks]).amax(dim=0))
            return
        out.copy_(blocks[0])
        for i, block in zip(members, blocks, strict=True):
            if not torch.equal(block.to(out.dtype), out):
                first = shown(self.source(members[0]).id)
                why = f"{step.dtype} values differ from {first}; integers are never averaged"
                self.problems.add(step.name, shown(self.source(i).id), {why: 0})


class Merged:
    """One averaged tensor of the result, computed in ranges.

    Complex tensors are computed with as their real view, of twice as many elements.

    Args:
        arithmetic: What it belongs to.
        step: A step of the action "merge".
    """

    def __init__(self, arithmetic: Arithmetic, step: Step) -> None:
        self.arithmetic = arithmetic
        self.step = step
        self.counting = arithmetic.counting(step)
        self.weights = arithmetic.weights(step)
        self.present = [i for i, w in enumerate(self.weights) if w or arithmetic.ordered]
        self.positions = list(dict.fromkeys([*self.present, *self.counting]))
        self.names = tuple(arithmetic.plan.members[i] for i in self.present)
        self.shares = tuple(self.weights[i] for i in self.present)
        dtypes = [arithmetic.spec(i, step.name).dtype for i in self.counting]
        self.wide = compute_dtype(promoted(dtypes))
        self.pairs = 2 if self.wide.is_complex else 1
        self.shape = (*step.shape, 2) if self.wide.is_complex else step.shape
        self.method = arithmetic.method(step, tuple(self.present))
        self.masked = False  # infinities on which all agree were found
        self.walked = False  # a pass over all values has begun
        output: torch.dtype = getattr(torch, step.dtype)
        self.coarse = max(output.itemsize, *(dtype.itemsize for dtype in dtypes)) <= 2
        self.fusable = self.coarse and arithmetic.device.type == "cpu" and self.pairs == 1
        self.narrow = output.itemsize == 1 or output in (torch.float16, torch.float64)

    @property
    def numel(self) -> int:
        """Number of real elements."""
        return math.prod(self.shape)

    def whole(self, block: int) -> bool:
        """Whether to compute it once as a whole rather than in ranges of that many elements.

        True of matrix methods, and where one slice is larger than the range.
        """
        unit = self.method.unit
        return unit == "tensor" or (unit == "row" and slice_numel(self.shape, unit) > block)

    def prepare(self, *, whole: bool) -> Any:
        """What ``fill`` must be given: the survey's state, or the whole result with ``whole``."""
        method = self.method
        if method.survey is None:
            state = None
        elif method.scope == "model":
            state = self.arithmetic.model_state
        else:
            state = method.survey(self.scan())
        if not whole:
            return state
        group, fixed = self.group(0, self.numel)
        result = method.merge(shaped(group, self.shape, method.unit), state).reshape(-1)
        return result, fixed

    def fill(self, start: int, out: Tensor, state: Any, *, whole: bool) -> None:
        """Compute the elements from ``start`` on into ``out``, flat, in the output dtype."""
        target = torch.view_as_real(out).reshape(-1) if self.pairs == 2 else out
        at = first = start * self.pairs
        end = first + target.numel()
        window = self._window(end)
        if not whole and self._added_up(window, at, target, state):
            return
        step = slice_numel(self.shape, "row") if self.method.unit == "row" and not whole else 1
        step *= max(1, GRAIN // step)
        while at < end:
            # Cut at the same places for any block, so that random numbers are drawn once.
            low = at // step * step
            stop = min(end, low + step)
            if whole:
                result, fixed = state[0][at:stop], cut_mask(state[1], at, stop)
            else:
                result, fixed = self._computed(window, low, at, stop, state)
            self._round(result, fixed, target[at - first : stop - first])
            at = stop

    def _added_up(self, window: Window, start: int, out: Tensor, state: Any) -> bool:
        """Compute a plain sum of the members by one call for many blocks, where that is allowed.

        False where it is not, or where something is not finite: then nothing is settled.
        """
        if not self.fusable or self.masked or self.method.factors is None:
            return False
        factors = self.method.factors(self.shares, state)
        # With the base, where it takes part, in front.
        sources = [BASE, *self.present] if len(factors) > len(self.present) else self.present
        terms = [(i, c) for i, c in zip(sources, factors, strict=True) if c]
        if not terms or min(c for _, c in terms) < 0.0:
            return False
        places, coefficients = [i for i, _ in terms], [c for _, c in terms]
        for low in range(0, out.numel(), AHEAD):
            block = out[low : low + AHEAD]
            raws = window.raws(places, start + low, start + low + block.numel())
            if not fused.weighted_sum(raws, coefficients, block, GRAIN):
                return False
            if self.narrow and unusable(block):
                return False
        return True

    def _products(self) -> Tensor | None:
        """Inner products of the task vectors by few calls; None where that is not allowed."""
        if not self.fusable or self.masked:
            return None
        count = len(self.present)
        total = torch.zeros(count * count, dtype=torch.float64)
        window = self._window(self.numel)
        for start in range(0, self.numel, AHEAD):
            stop = min(start + AHEAD, self.numel)
            raws = window.raws(self.present, start, stop)
            base = window.raws([BASE], start, stop)[0] if BASE in self.counting else None
            found = fused.products(raws, base, GRAIN, SMALL_VECTOR, *SAFE_SQUARES)
            total += torch.tensor(found, dtype=torch.float64)
        if not bool(torch.isfinite(total).all()):
            return None
        self.walked = True
        return total.reshape(count, count)

    def scan(self) -> TensorScan:
        """The tensor, for a survey."""
        plan = self.arithmetic.plan
        return TensorScan(
            name=self.step.name,
            shape=self.shape,
            members=self.names,
            weights=self.shares,
            seed=plan.seed,
            read=lambda start, stop: self.group(start, stop)[0],
            unit=self.method.unit,
            walk=self._walk,
            fused=self._products,
        )

    def _walk(self) -> Read:
        """A reader for one pass from the first element to the last."""
        window, checked = self._window(self.numel), self.masked or not self.walked
        self.walked = True
        return lambda start, stop: self.group(start, stop, window, checked=checked)[0]

    def group(
        self, start: int, stop: int, window: Window | None = None, *, checked: bool = True
    ) -> tuple[TensorGroup, Fixed | None]:
        """A flat block of every member, with agreed infinities set to zero and told apart.

        Args:
            start: First element.
            stop: End of the elements.
            window: Reads ahead, where a whole range is walked.
            checked: Look for what is not finite.
        """
        window = window or self._window(stop)
        blocks = window.blocks(start, stop)
        fixed = None
        if checked and not all(math.isfinite(float(blocks[i].sum())) for i in self.counting):
            fixed = self._agreed(blocks)
        plan = self.arithmetic.plan
        group = TensorGroup(
            name=self.step.name,
            members=self.names,
            tensors=tuple(blocks[i] for i in self.present),
            weights=self.shares,
            coarse=self.coarse,
            base=blocks.get(BASE),
            stats=self._stats(start, stop) if plan.stats else {},
            seed=plan.seed,
            start=start,
        )
        return group, fixed

    def _window(self, end: int) -> Window:
        arithmetic, name = self.arithmetic, self.step.name
        return Window(
            {i: arithmetic.source(i) for i in self.positions},
            {i: arithmetic.spec(i, name).dtype for i in self.positions},
            name,
            end,
            self.numel,
            self.wide,
            arithmetic.device,
        )

    def _computed(
        self, window: Window, low: int, start: int, stop: int, state: Any
    ) -> tuple[Tensor, Fixed | None]:
        """The merged elements from ``start`` to ``stop``; of slices the whole ones around them."""
        method = self.method
        if method.unit == "element":
            # What a survey looked at, or what shows in the result, is not looked at again.
            checked = self.masked or not (method.linear or self.walked)
            group, fixed = self.group(start, stop, window, checked=checked)
            result = method.merge(group, state)
            if not checked and not math.isfinite(float(result.sum())):
                # Look for what is not finite only where something of it shows.
                group, fixed = self.group(start, stop, window)
                result = method.merge(group, state)
            return result, fixed
        piece = slice_numel(self.shape, method.unit)
        high = min(-(-stop // piece) * piece, self.numel)
        group, fixed = self.group(low, high, window)
        result = method.merge(shaped(group, self.shape, method.unit), state).reshape(-1)
        return result[start - low : stop - low], cut_mask(fixed, start - low, stop - low)

    def _round(self, result: Tensor, fixed: Fixed | None, out: Tensor) -> None:
        out.copy_(result)
        if self.narrow or not abs(float(result.sum())) < fused.SAFE_SUM:
            wrong = unusable(out)
            if wrong:
                where = f"the result in {self.step.dtype}"
                self.arithmetic.problems.add(self.step.name, where, wrong)
        if fixed is not None:
            out[fixed.where] = fixed.values.to(out.dtype)

    def _agreed(self, blocks: dict[int, Tensor]) -> Fixed | None:
        """Set what is not finite to zero in all blocks; note it, unless all members agree."""
        first = blocks[self.counting[0]]
        where = torch.isinf(first)
        for i in self.counting:
            where &= blocks[i] == first
        for i in self.counting:
            wrong = unusable(blocks[i][~where])
            if wrong:
                source = shown(self.arithmetic.source(i).id)
                self.arithmetic.problems.add(self.step.name, source, wrong)
        fixed = Fixed(where, first[where])
        self.masked = self.masked or len(fixed.values) > 0
        for i, block in blocks.items():
            blocks[i] = torch.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            blocks[i][where] = 0.0
        return fixed if len(fixed.values) else None

    def _stats(self, start: int, stop: int) -> dict[str, tuple[Tensor, ...]]:
        """Statistics of the same shape as blocks, others whole; none where a member has none."""
        name, device = self.step.name, self.arithmetic.device
        found: dict[str, tuple[Tensor, ...]] = {}
        for kind, sources in self.arithmetic.inputs.stats.items():
            own = [sources[i] for i in self.present]
            if any(name not in self.arithmetic.stats_names[id(source)] for source in own):
                continue
            if kind == "fisher":
                read = [source.read(name, start=start, stop=stop) for source in own]
            else:
                read = [source.read(name) for source in own]
            found[kind] = tuple(t.to(device, compute_dtype(t.dtype)) for t in read)
        return found
