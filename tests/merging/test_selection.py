from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.execution.scanning import ModelScan, TensorScan
from alloykit.merging import tally
from alloykit.merging.selection import kth_largest
from alloykit.types import TensorGroup


@dataclass(frozen=True)
class CountingScan(TensorScan):
    """A scan that notes how often it was walked."""

    passes: list[int] = None

    def total(self, statistic):
        self.passes.append(1)
        return super().total(statistic)


def scan_of(*rows: torch.Tensor, shape=None, name="w") -> CountingScan:
    names = tuple(f"m{i}" for i in range(len(rows)))

    def read(start, stop):
        return TensorGroup(name, names, tuple(r[start:stop] for r in rows), (1.0,) * len(rows))

    return CountingScan(
        name, shape or tuple(rows[0].shape), names, (1.0,) * len(rows), 0, read, passes=[]
    )


def found(scan, ranks, count=1, **options):
    rows = [lambda group, i=i: group.tensors[i] for i in range(count)]
    return kth_largest(scan, rows, ranks, **options)


def expected(row: torch.Tensor, ranks) -> list[float]:
    descending = np.sort(np.abs(row.numpy()))[::-1]
    return [float(descending[rank - 1]) for rank in ranks]


def normal(numel: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(numel, dtype=dtype, generator=generator)


def differences_of_bfloat16(numel: int, seed: int = 0) -> torch.Tensor:
    base = 0.02 * normal(numel, seed)
    member = base + 5e-4 * normal(numel, seed + 1)
    return member.bfloat16().float() - base.bfloat16().float()


def rows_of_their_own_scale(numel: int, seed: int = 0) -> torch.Tensor:
    scale = normal(numel // 1000 + 1, seed).exp().repeat_interleave(1000)[:numel]
    return scale * normal(numel, seed + 1)


KINDS = {
    "normal": normal,
    "float64": lambda numel, seed=0: normal(numel, seed, torch.float64),
    "differences of bfloat16": differences_of_bfloat16,
    "rows": rows_of_their_own_scale,
    "mostly zero": lambda numel, seed=0: normal(numel, seed).clamp_min(2.0) - 2.0,
    "constant": lambda numel, seed=0: torch.full((numel,), -3.0),
    "few values": lambda numel, seed=0: normal(numel, seed).round(),
    "subnormal": lambda numel, seed=0: 1e-42 * normal(numel, seed),
    "sorted": lambda numel, seed=0: normal(numel, seed).sort().values,
    "outliers": lambda numel, seed=0: normal(numel, seed).pow(9),
}


@pytest.mark.parametrize("numel", [1, 2, 1000, 65_536, 65_537, 150_000])
@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_sorting_finds(kind, numel):
    values = KINDS[kind](numel)
    ranks = sorted({1, max(1, numel // 100), max(1, numel // 2), numel})
    assert found(scan_of(values), [ranks]) == [expected(values, ranks)]


@given(st.integers(0, 10_000), st.integers(65_537, 100_000), st.floats(0.0, 1.0),
       st.sampled_from(sorted(KINDS)))  # fmt: skip
def test_it_is_exact_at_any_rank(seed, numel, share, kind):
    values = KINDS[kind](numel, seed)
    rank = 1 + round(share * (numel - 1))
    assert found(scan_of(values), [[rank]]) == [expected(values, [rank])]


def test_several_rows_of_which_some_want_nothing():
    rows = [normal(70_000, seed) for seed in range(3)]
    ranks = [[7, 69_000], [], [35_000]]
    assert found(scan_of(*rows), ranks, 3) == [
        expected(row, each) for row, each in zip(rows, ranks, strict=True)
    ]


def test_rows_that_nobody_wants_are_not_computed():
    def refuses(group):
        raise AssertionError("computed")

    kth_largest(scan_of(normal(70_000)), [refuses], [[]])


def test_a_rank_beyond_all_elements_is_that_of_a_zero():
    assert found(scan_of(normal(10)), [[11]]) == [[0.0]]
    assert found(scan_of(normal(70_000)), [[70_001]]) == [[0.0]]
    assert found(scan_of(normal(0)), [[1, 2]]) == [[0.0, 0.0]]


@pytest.mark.parametrize("kind", ["normal", "differences of bfloat16", "few values", "constant"])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5])
def test_one_pass_is_enough(kind, density):
    scan = scan_of(KINDS[kind](500_000))
    found(scan, [[round(density * scan.numel)]])
    assert len(scan.passes) == 1


def test_what_fits_into_a_sample_takes_no_pass():
    scan = scan_of(normal(65_536))
    found(scan, [[100, 5000]])
    assert not scan.passes


@pytest.mark.parametrize("low", [0.0, 5.0])
@pytest.mark.parametrize("rank", [1, 300, 60_000, 90_000, 99_999])
def test_a_sample_that_misleads_costs_passes_and_nothing_else(low, rank):
    """The elements that are sampled have nothing in common with all others."""
    values = normal(100_000).abs() + low
    sampled = scan_of(torch.arange(100_000)).sample().tensors[0].long()
    values[sampled] = 2.0 + 1e-3 * values[sampled]
    assert found(scan_of(values), [[rank]]) == [expected(values, [rank])]


@pytest.mark.parametrize("kind", ["normal", "float64", "rows", "few values", "outliers"])
def test_more_distinct_values_than_fit_are_found_in_further_passes(kind, monkeypatch):
    monkeypatch.setattr(tally, "HELD", 64)
    monkeypatch.setattr(tally, "BINS", 32)
    values = KINDS[kind](100_000)
    ranks = [1, 777, 50_000, 100_000]
    assert found(scan_of(values), [ranks]) == [expected(values, ranks)]


def test_rows_that_no_sample_can_compute():
    values = normal(300_000).double()
    scan = scan_of(values, shape=(300, 1000))
    scan = replace(scan, unit="row")

    def of_rows(group):
        assert group.tensors[0].shape[1:] == (1000,)
        return group.tensors[0]

    ranks = [1, 75_000, 150_000, 300_000]
    result = kth_largest(scan, [of_rows], [ranks], scattered=False, dtype=torch.float64)
    assert result == [expected(values, ranks)]


def test_a_whole_model():
    parts = [normal(numel, numel) * numel**0.5 for numel in (50, 3000, 70_000, 200_000, 0, 1)]
    whole = torch.cat(parts)
    ranks = [1, 2000, 100_000, whole.numel()]
    model = ModelScan([scan_of(part, name=f"w{i}") for i, part in enumerate(parts)])
    assert found(model, [ranks]) == [expected(whole, ranks)]


def test_a_small_whole_model():
    parts = [normal(numel, numel) for numel in (50, 3000, 5000)]
    model = ModelScan([scan_of(part) for part in parts])
    assert found(model, [[10, 4000]]) == [expected(torch.cat(parts), [10, 4000])]


def test_nan_counts_as_the_largest():
    values = normal(70_000)
    values[[5, 60_000]] = torch.tensor([float("nan"), -float("nan")])
    (third, first), = found(scan_of(values), [[3, 1]])  # fmt: skip
    assert np.isnan(first)
    assert third == values.nan_to_num(0.0).abs().max().item()


def test_the_values_are_left_as_they_are():
    values = normal(100_000)
    before = values.clone()
    found(scan_of(values), [[5, 50_000]])
    assert torch.equal(values, before)
