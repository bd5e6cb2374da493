from __future__ import annotations

import random

import pytest
import torch

from alloykit.training.order import derived_seed, epoch_order, share, steps_of
from alloykit.training.seeding import borrowed_generators, devices_of


def test_an_epoch_sees_every_example_once_in_an_order_of_its_own():
    orders = [epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (1, 2)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[0], epoch_order(0, 1, 50))


def test_seeds_differ_in_their_low_bits_and_by_where_the_numbers_stand():
    seeds = [derived_seed(0, "step", step) & 0xFFFFFFFF for step in range(1000)]
    assert len(set(seeds)) == 1000
    assert derived_seed(1, 23) != derived_seed(12, 3)
    assert 0 <= derived_seed(2**70) < 2**63


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 16, 17, 18, 40])
def test_the_steps_cover_the_order_and_no_batch_has_one_example(count, accumulate):
    order = epoch_order(0, 1, count)
    steps = steps_of(order, 8, accumulate)
    assert torch.cat([rows for step in steps for rows in step]).tolist() == order.tolist()
    sizes = [len(rows) for step in steps for rows in step]
    assert max(sizes) <= 9
    assert min(sizes) > 1 or count == 1
    assert all(len(step) == accumulate for step in steps[:-1])


def test_batches_of_one_where_they_are_asked_for():
    assert [[len(rows) for rows in step] for step in steps_of(torch.arange(3), 1, 2)] == [
        [1, 1],
        [1],
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_cover_the_batch(processes):
    rows = torch.tensor([5, 3, 9, 1, 7])
    shares = [share(rows, process, processes) for process in range(processes)]
    assert torch.equal(torch.cat(shares), rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_generators_are_given_back_even_after_an_error():
    before, python = torch.get_rng_state(), random.getstate()

    def work() -> None:
        with borrowed_generators([torch.device("cpu")]) as seed:
            seed(3)
            first = torch.rand(4)
            seed(3)
            assert torch.equal(torch.rand(4), first)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_devices_are_named_once():
    net = torch.nn.BatchNorm1d(2)
    net.register_buffer("far", torch.empty(1, device="meta"))
    assert devices_of(net) == [torch.device("cpu"), torch.device("meta")]
    with borrowed_generators(devices_of(net)):
        pass
