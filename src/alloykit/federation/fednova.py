"""FedNova: clients that took more steps do not pull harder."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.federation.contract import (
    Given,
    Parts,
    Report,
    Reports,
    Step,
    Sum,
    aggregator,
)
from alloykit.federation.limits import known


@aggregator(
    asks=frozenset({"num_examples", "steps", "server"}),
    formula="server + τ·Σ pᵢ·Δᵢ/aᵢ,  pᵢ = nᵢ/Σ nⱼ,  τ = Σ pᵢ·aᵢ,  Δᵢ = clientᵢ − server",
    paper="Wang et al., Tackling the objective inconsistency problem, 2020, arXiv:2007.07481.",
)
def fednova() -> Parts:
    """Average the clients' changes per step, then go as many steps as they took on average.

    new = server + (Σ pᵢ · aᵢ) · Σ pᵢ · Δᵢ / aᵢ, with pᵢ = nᵢ / Σ nⱼ, Δᵢ = clientᵢ − server and
    aᵢ the client's number of steps

    Use it when clients take unequal numbers of local steps: the plain mean then solves a problem
    in which those that take more steps count more. With equal steps it is ``fedavg``. Statistics
    of BatchNorm are only averaged, with pᵢ / aᵢ as weights.

    Needs:
        num_examples and steps of every client. With momentum or a proximal term a step does not
        count as one: ``client_terms.counted_steps`` gives the number. A client with few steps
        counts with a factor above 1, so that one that lies about its steps can blow up its
        change; ``Checks.norm_ratio`` does not see that.

    Raises:
        MissingInput: In the round, a client that does not say its steps.

    Example:
        >>> from alloykit.federation.contract import Report
        >>> reports = [Report("a", steps=10), Report("b", steps=30)]
        >>> rule = fednova().rule(None)
        >>> [round(each, 4) for each in rule.coefficients(reports)]
        [1.0, 0.3333]

    References:
        Wang, Liu, Liang, Joshi and Poor, Tackling the objective inconsistency problem in
        heterogeneous federated optimization, 2020, arXiv:2007.07481, equations 6 and 12, with the
        default effective number of steps τ = Σ pᵢ·aᵢ. Differs from the authors' code, which with
        a proximal term takes the plain number of steps for τ.
    """
    step = Step(change=lambda given: (given.combined, {}), buffers=averaged)
    return Parts(Sum(factor=_per_step, divisor=_examples_per_step), step=step)


def averaged(given: Given) -> Tensor:
    """A statistic of BatchNorm, as a mean of the clients': a variance must not become negative.

    server + (combined − server) / (sum of all factors), since with unequal steps they sum to more
    than one.

    Shapes:
        server [*shape], combined [*shape] -> [*shape]
    """
    return torch.lerp(given.server, given.combined, 1.0 / given.total)


def _per_step(report: Report) -> float:
    return report.num_examples / _steps(report)


def _examples_per_step(reports: Reports) -> float:
    total = sum(report.num_examples for report in reports)
    return total * total / sum(report.num_examples * _steps(report) for report in reports)


def _steps(report: Report) -> float:
    return known(report.steps, "number of local steps", report.client, "fednova")
