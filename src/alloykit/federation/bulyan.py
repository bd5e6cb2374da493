"""Bulyan: clients chosen by Krum, then the mean of the values nearest to their median."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from alloykit.federation.contract import Blocks, Matrix, Parts, Reports, aggregator
from alloykit.federation.krum_scores import closest, closest_in_turn
from alloykit.federation.limits import one_of, refuse, require_clients, whole
from alloykit.merging.ordering import from_sorted
from alloykit.numerics import weighted_mean
from alloykit.types import TensorGroup


@aggregator(
    formula="of n−2f clients by Krum: the mean of the n−4f values nearest to the median",
    paper="El Mhamdi et al., The hidden vulnerability, 2018, arXiv:1802.07927.",
)
def bulyan(num_malicious: int = 1, compat: Literal["flower"] | None = None) -> Parts:
    """Choose n − 2f clients by Krum, then average the values nearest to their median.

    chosen = n − 2f times the client with the least Krum score among those left;
    new = of every element, the mean of the n − 4f chosen values nearest to their median

    Use it against attacks that hide a large change of few elements within the usual distance
    between clients. It needs many honest clients for each malicious one.

    Args:
        num_malicious: f, how many clients may be malicious, at least 0; the default is 1. With f
            there must be at least 4f + 3 clients in a round. Where there are fewer, f falls by
            as many as were left out for what they sent, at most.
        compat: "flower" chooses the n − 2f clients with the least scores all at once, without
            new scores among those left.

    Raises:
        InvalidParameter: f is negative, or an unknown compat; in the round, fewer than 4f + 3
            clients.

    Example:
        >>> tensors = tuple(torch.tensor([x]) for x in (0.0, 1.0, 2.0, 3.0, 60.0))
        >>> group = TensorGroup("w", tuple("abcde"), tensors, (0.2,) * 5)
        >>> bulyan(num_malicious=1).rule(None).combine(group)
        tensor([2.])

    References:
        El Mhamdi, Guerraoui and Rouault, The hidden vulnerability of distributed learning in
        Byzantium, 2018, arXiv:1802.07927, section 4. A score counts at least one neighbour, also
        among the last few clients, where the paper's count would be none. Of two values equally
        far from the median the smaller one is taken.
    """
    refuse(
        "bulyan",
        [whole("num_malicious", num_malicious), one_of("compat", compat, (None, "flower"))],
    )
    choose = closest if compat else closest_in_turn

    def chosen(products: Matrix, reports: Reports) -> list[int]:
        count = len(reports)
        require_clients("bulyan", num_malicious, 4, count)
        return choose(products, num_malicious, count - 2 * num_malicious)

    def combine(group: TensorGroup) -> Tensor:
        kept = len(group.tensors) - 2 * num_malicious
        return from_sorted(group.tensors, lambda rows: mean_near_median(rows, kept))

    return Parts(Blocks(combine, chosen))


def mean_near_median(rows: list[Tensor], kept: int) -> Tensor:
    """Of every element the mean of the ``kept`` values that are nearest to the median.

    Args:
        rows: The values of every element in order, smallest first; not modified.
        kept: How many count, at least 1.

    Shapes:
        rows [client, *shape] -> [*shape]

    Example:
        >>> rows = [torch.tensor([x]) for x in (-5.0, 1.0, 2.0, 3.0, 5.0)]
        >>> mean_near_median(rows, kept=4)
        tensor([2.7500])
    """
    count = len(rows)
    median = weighted_mean((rows[(count - 1) // 2], rows[count // 2]), (0.5, 0.5))
    first = _first_kept(rows, kept, median)
    total = torch.zeros_like(median)
    for position, row in enumerate(rows):
        offset = median - row
        # In the middle every value counts, whatever is left out at the ends.
        if not count - kept <= position < kept:
            offset.mul_((first <= position) & (first > position - kept))
        total.add_(offset)
    # Taken off, because -0.0 + 0.0 is 0.0.
    return median.sub_(total.div_(kept))


def _first_kept(rows: list[Tensor], kept: int, median: Tensor) -> Tensor:
    """Position of the smallest value that counts.

    Those that count are neighbours in order, and the first of them moves up for as long as it is
    farther from the median than the next one beyond the last.
    """
    first = torch.zeros(median.shape, dtype=torch.int16, device=median.device)
    for low, high in zip(rows, rows[kept:], strict=False):
        first += (median - low) > (high - median)
    return first
