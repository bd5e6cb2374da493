from __future__ import annotations

import pytest
import torch

from alloykit.errors import DataError, InvalidParameter
from alloykit.federation.partitioning import PARTITIONS, dirichlet, iid, shards

LABELS = torch.randint(10, (997,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PARTITIONS)
def test_every_example_goes_to_one_client_and_the_seed_decides(name):
    deal = PARTITIONS[name]
    parts = deal(LABELS, 7, 3)
    assert sorted(torch.cat(parts).tolist()) == list(range(997))
    assert all(torch.equal(part, part.sort().values) for part in parts)
    assert all(map(torch.equal, parts, deal(LABELS, 7, 3)))
    assert not all(
        len(a) == len(b) and torch.equal(a, b)
        for a, b in zip(parts, deal(LABELS, 7, 4), strict=True)
    )


def test_one_client_has_everything():
    for deal in PARTITIONS.values():
        assert torch.equal(deal(LABELS, 1, 0)[0], torch.arange(997))


def test_iid_is_even_in_numbers_and_in_classes():
    labels = torch.arange(10_000) % 10
    parts = iid(labels, 8)
    assert {len(part) for part in parts} == {1250}
    for part in parts:
        # 125 expected; six standard deviations of a hypergeometric draw.
        assert (torch.bincount(labels[part], minlength=10) - 125).abs().max() < 60


def test_dirichlet_shares_of_a_class_are_those_of_its_draw():
    labels = torch.arange(20_000) % 2
    skewed = dirichlet(labels, 5, 1, concentration=0.2)
    even = dirichlet(labels, 5, 1, concentration=1000.0)

    def shares(parts):
        return torch.stack([torch.bincount(labels[p], minlength=2) for p in parts]) / 10_000

    assert torch.allclose(shares(skewed).sum(0), torch.ones(2))
    assert (shares(even) - 0.2).abs().max() < 0.02
    assert shares(skewed).max() > 0.5


def test_the_variance_of_dirichlet_shares():
    """Var = (1/K)(1 - 1/K) / (K·a + 1) of a symmetric Dirichlet draw."""
    labels = torch.zeros(1000, dtype=torch.long)
    found = []
    for seed in range(400):
        found += [len(p) / 1000 for p in dirichlet(labels, 4, seed, concentration=2.0)]
    variance = torch.tensor(found, dtype=torch.float64).var(correction=0)
    assert float(variance) == pytest.approx(0.25 * 0.75 / 9, rel=0.12)


def test_the_draws_of_published_figures_stay():
    found = dirichlet(LABELS, 4, 5, concentration=0.3, least=20)
    assert [len(rows) for rows in found] == [239, 301, 147, 310]
    assert [rows[:3].tolist() for rows in found] == [
        [0, 3, 17],
        [1, 9, 12],
        [22, 23, 24],
        [2, 4, 5],
    ]


def test_shards_hold_neighbouring_labels():
    labels = torch.arange(1000) // 100
    parts = shards(labels[torch.randperm(1000)], 10, per_client=2)
    assert {len(part) for part in parts} == {100}
    parts = shards(labels, 10, 0, per_client=1)
    assert sorted(int(labels[part].unique().item()) for part in parts) == list(range(10))


def test_dirichlet_says_why_it_gives_up():
    with pytest.raises(
        DataError,
        match=r"In 1,000 draws with concentration 0.01, 100 examples never gave each of 10",
    ):
        dirichlet(torch.zeros(100, dtype=torch.long), 10, concentration=0.01, least=5)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: iid(LABELS, 1000), DataError, "997 examples are too few for 1000 clients"),
        (lambda: iid(LABELS, 100, least=10), DataError, "100 clients with at least 10 each"),
        (lambda: iid(LABELS, 0), InvalidParameter, "'clients' must be a whole number of at least 1. Got 0"),
        (lambda: iid(LABELS, 2, -1), InvalidParameter, "'seed'"),
        (lambda: iid([0, 1], 2), InvalidParameter, "'labels' must be a tensor"),
        (lambda: dirichlet(LABELS, 2, concentration=0.0), InvalidParameter, "'concentration' must be above 0"),
        (lambda: dirichlet(LABELS.reshape(1, -1), 1), InvalidParameter, "with iid"),
        (lambda: shards(LABELS, 2, per_client=0), InvalidParameter, "'per_client'"),
        (lambda: shards(LABELS, 500, per_client=2), DataError, "cannot be cut into 500 x 2 shards"),
        (lambda: shards(LABELS, 9, least=111), DataError, "too few for 9"),
    ],
)  # fmt: skip
def test_mistakes(call, error, text):
    with pytest.raises(error, match=text):
        call()
