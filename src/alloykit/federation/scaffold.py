"""SCAFFOLD, the server's part: the mean of the clients, and of the changes of their controls."""

from __future__ import annotations

from alloykit.errors import InvalidParameter
from alloykit.federation.contract import Parts, Sum, aggregator
from alloykit.federation.limits import positive, refuse, whole
from alloykit.federation.server_optimizers import longer_steps


@aggregator(
    asks=frozenset({"control", "server"}),
    formula="server + η/|S|·Σ Δᵢ;  c ← c + 1/N·Σ Δcᵢ,  over the |S| clients of the round",
    paper="Karimireddy et al., SCAFFOLD, 2020, arXiv:1910.06378.",
)
def scaffold(num_clients: int, server_learning_rate: float = 1.0) -> Parts:
    """Average the clients, and keep a control variate that tells them where the others pull.

    new = server + server_learning_rate / n · Σ Δᵢ, with Δᵢ = clientᵢ − server;
    c = c + 1 / num_clients · Σ Δcᵢ, over the n clients of the round

    Use it when clients hold unlike data and take many local steps: their control variates take
    out what pulls them apart. Each client adds ``client_terms.correction`` to its loss, keeps its
    own control variate and sends the change of it (``client_terms.control_change``). It needs
    clients that come back: with each taking part once, the control variates are out of date.

    Args:
        num_clients: N, how many clients there are in all, those of other rounds included.
        server_learning_rate: Above 0; 1 in the paper's experiments. Statistics of BatchNorm are
            only averaged.

    Raises:
        InvalidParameter: Numbers outside their ranges; in the round, more clients than there are.

    Example:
        >>> from alloykit.federation.contract import Report
        >>> made = scaffold(num_clients=10)
        >>> made.rule(None).coefficients([Report("a"), Report("b")]), made.control(2)
        ([0.5, 0.5], 0.2)

    References:
        Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, SCAFFOLD: Stochastic controlled
        averaging for federated learning, 2020, arXiv:1910.06378, algorithm 1.
    """
    refuse(
        "scaffold",
        [
            whole("num_clients", num_clients, 1),
            positive("server_learning_rate", server_learning_rate),
        ],
    )

    def control(clients: int) -> float:
        if clients > num_clients:
            raise InvalidParameter(
                f"scaffold was told of {num_clients} clients in all, and {clients} count in this "
                f"round. Give num_clients={clients} or more."
            )
        return clients / num_clients

    return Parts(
        Sum(factor=lambda report: 1.0, divisor=len),
        step=longer_steps(server_learning_rate),
        control=control,
    )
