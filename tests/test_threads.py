from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from alloykit.threads import SHORT, alone, mapped, one_thread_each, threads_for


def blas_threads() -> set[int]:
    # numpy's BLAS is there whatever else is loaded.
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def _several():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    with threadpool_limits(3, user_api="blas"):
        yield
    torch.set_num_threads(before)


def test_a_short_step_has_one_thread_and_a_long_one_those_of_torch():
    most = blas_threads()
    with threads_for(SHORT):
        assert torch.get_num_threads() == 1
        assert blas_threads() == {1}
    with threads_for(SHORT + 1):
        assert torch.get_num_threads() == 3
        assert blas_threads() == {1}
    assert torch.get_num_threads() == 3
    assert blas_threads() == most


@pytest.mark.parametrize("limited", [one_thread_each, lambda: threads_for(1)])
def test_what_was_set_comes_back_after_an_error(limited):
    most = blas_threads()
    with pytest.raises(ValueError, match="inside"), limited():
        raise ValueError("inside")
    assert torch.get_num_threads() == 3
    assert blas_threads() == most


SOLVE = """
import torch
torch.set_num_threads(4)
from threadpoolctl import threadpool_limits
threadpool_limits(4, user_api="blas")
from alloykit.fusion import solving
from alloykit.fusion.concat import concat
from alloykit.fusion.head import HeadData, HeadShape
from threadpoolctl import threadpool_info
seen, plain = set(), solving.penalised_log_loss
def watched(*given):
    seen.add(torch.get_num_threads())
    seen.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
    return plain(*given)
solving.penalised_log_loss = watched
members = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
data = HeadData(tuple(members), members[1].argmax(1))
concat(pull=1).fit(data, HeadShape((3, 3), 3, "classification"))
print(seen)
"""


def test_a_small_head_is_solved_on_one_thread_whatever_is_set():
    ran = subprocess.run(
        [sys.executable, "-c", SOLVE], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.stdout == "{1}\n", ran.stderr


@pytest.mark.parametrize("threads", [1, 3])
def test_mapped_keeps_the_order_and_gives_each_thread_one_of_torch(threads: int) -> None:
    found = list(mapped(lambda n: (n, torch.get_num_threads()), range(20), threads))
    assert [number for number, _ in found] == list(range(20))
    if threads > 1:
        assert {each for _, each in found} == {1}


def test_mapped_passes_an_error_on() -> None:
    with pytest.raises(ZeroDivisionError):
        list(mapped(lambda n: 1 / n, [1, 0, 2], 2))


def test_alone_leaves_torch_and_blas_one_thread_and_puts_them_back() -> None:
    before = (torch.get_num_threads(), blas_threads())
    with alone():
        assert torch.get_num_threads() == 1
        assert blas_threads() == {1}
    assert (torch.get_num_threads(), blas_threads()) == before
