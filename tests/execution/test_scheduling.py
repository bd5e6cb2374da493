"""Blocks in order, surveys once each and let go again, and nobody who waits in vain."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.checkpoints.layout import lay_out, shards
from alloykit.execution.blocks import Block, Cutting, Part
from alloykit.execution.plan import Plan, Step
from alloykit.execution.scheduling import Schedule


def step(name: str) -> Step:
    return Step(name, "merge", (1,), "float32")


def work(sizes: list[int], surveyed: set[int]):
    """Blocks that hold so many parts of tensors each; every other tensor goes on in the next."""
    steps = [step(str(index)) for index in range(sum(sizes) + 1)]
    blocks, position = [], 0
    for index, size in enumerate(sizes):
        parts = tuple(Part(steps[position + i], 0, 1, i) for i in range(size + 1))
        blocks.append((Block(index, 0, index, index + 1), parts))
        position += size
    names = {steps[i].name for i in surveyed if i < len(steps)}
    uses = Counter(p.step.name for _, parts in blocks for p in parts if p.step.name in names)
    return blocks, [each for each in steps if each.name in uses], uses


def carried_out(schedule: Schedule, threads: int, prepare, compute) -> None:
    def run() -> None:
        assert schedule.enter()
        try:
            while (task := schedule.next()) is not None:
                if task.step is not None:
                    schedule.keep(task.step, prepare(task.step))
                else:
                    compute(task)
                    schedule.finish(task.parts)
        except BaseException as error:
            schedule.fail(error)
        finally:
            schedule.leave()

    started = [threading.Thread(target=run) for _ in range(threads)]
    for each in started:
        each.start()
    for each in started:
        each.join(30)
        assert not each.is_alive()


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.sets(st.integers(0, 40)),
    st.integers(1, 4),
)
def test_each_block_is_done_once_with_what_its_tensors_were_prepared_with(sizes, chosen, threads):
    blocks, surveyed, uses = work(sizes, chosen)
    schedule = Schedule(blocks, surveyed, uses, ahead=threads, given={"given": 1})
    prepared: list[str] = []
    done: list[int] = []

    def prepare(each: Step) -> str:
        prepared.append(each.name)
        return f"state of {each.name}"

    names = {each.name for each in surveyed}

    def compute(task) -> None:
        done.append(task.block.index)
        for part in task.parts:
            expected = f"state of {part.step.name}" if part.step.name in names else None
            assert schedule.state(part) == expected

    carried_out(schedule, threads, prepare, compute)
    assert schedule.error is None
    assert schedule.ended(threads)
    assert sorted(done) == list(range(len(sizes)))
    assert sorted(prepared) == sorted(names)
    assert schedule._states == {}


@pytest.mark.parametrize("where", ["prepare", "compute"])
def test_an_error_reaches_those_who_wait(where):
    blocks, surveyed, uses = work([3] * 30, set(range(0, 90, 2)))
    schedule = Schedule(blocks, surveyed, uses, ahead=4, given={})
    chance = random.Random(0)

    def maybe(kind: str):
        def act(_) -> None:
            time.sleep(chance.random() / 1000)
            if kind == where and chance.random() < 0.1:
                raise ZeroDivisionError

        return act

    carried_out(schedule, 4, maybe("prepare"), maybe("compute"))
    assert isinstance(schedule.error, ZeroDivisionError)
    assert schedule.ended(4)
    assert schedule.next() is None
    assert not schedule.enter()


def test_who_waits_for_what_fails_is_told():
    blocks, surveyed, uses = work([0], {0})
    schedule = Schedule(blocks, surveyed, uses, ahead=1, given={})

    def failing(_) -> None:
        time.sleep(0.05)
        raise ZeroDivisionError

    carried_out(schedule, 3, failing, lambda task: None)
    assert isinstance(schedule.error, ZeroDivisionError)


def test_no_more_is_prepared_ahead_than_allowed():
    blocks, surveyed, uses = work([1] * 60, set(range(60)))
    schedule = Schedule(blocks, surveyed, uses, ahead=3, given={})
    held: list[int] = []

    def compute(_) -> None:
        held.append(len(schedule._states))
        time.sleep(0.0005)

    carried_out(schedule, 3, lambda each: each.name, compute)
    # What three blocks in hand and the next one need, and what is prepared ahead of them.
    assert max(held) <= 3 + 2 + 3


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([0, 1, 2, 3, 70, 1025]), max_size=2),
            st.sampled_from([torch.float32, torch.bfloat16, torch.complex64, torch.uint8]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([1, 4096, 10_000, 1 << 20]),
    st.sampled_from([None, 1, 5000]),
)
def test_every_byte_of_every_tensor_is_in_one_block(tensors, size, shard):
    steps = tuple(
        Step(f"t{i}", "merge", tuple(shape), str(dtype)[6:])
        for i, (shape, dtype) in enumerate(tensors)
    )
    plan = Plan("linear", {}, ("a",), (1.0,), None, 0, steps)
    groups = [plan.specs()] if shard is None else shards(plan.specs(), shard)
    layouts = [lay_out(group, {}) for group in groups]
    cutting = Cutting(plan, layouts, size)
    seen: dict[str, int] = Counter()
    for index in range(len(cutting)):
        block = cutting.block(index)
        assert block.index == index
        assert block.start % 4096 == 0 < block.size <= cutting.size
        at = 0
        for part in cutting.parts(block):
            width = getattr(torch, part.step.dtype).itemsize
            assert part.offset == at
            assert part.start == seen[part.step.name] < part.stop
            seen[part.step.name] = part.stop
            at += (part.stop - part.start) * width
        assert at == block.size
    assert all(seen[step.name] == torch.Size(step.shape).numel() for step in steps)
    assert cutting.nbytes == sum(spec.nbytes for spec in plan.specs().values())
