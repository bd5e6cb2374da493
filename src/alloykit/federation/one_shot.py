"""One-shot federation: models trained apart become one, or answer as one, without any round."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from alloykit.checkpoints.loading import load_state
from alloykit.data.examples import Examples
from alloykit.ensembling.module import Ensemble
from alloykit.ensembling.weighted import weighted
from alloykit.errors import InvalidParameter, MismatchedCheckpoints, MissingInput, listing
from alloykit.evaluation.freezing import frozen_view, require_modules
from alloykit.federation import feddf
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.clients import tensors_of
from alloykit.federation.contract import Aggregator
from alloykit.federation.settings import LOCAL, Pooling
from alloykit.federation.update import Update
from alloykit.training.loop import train
from alloykit.training.losses import loss_of
from alloykit.training.order import derived_seed
from alloykit.training.retraining import blank
from alloykit.training.rows import Rows
from alloykit.training.settings import Training
from alloykit.types import Task

Clients = Mapping[str, nn.Module]
Align = Callable[[list[nn.Module]], list[nn.Module]]
"""Models of one architecture -> the same functions, their units in the order of the first's."""


def trained_apart(
    model: nn.Module | Callable[[], nn.Module],
    partitions: Mapping[str, Rows],
    training: Training = LOCAL,
    *,
    task: Task = "classification",
    seed: int = 0,
    same_start: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, nn.Module]:
    """Let every client train a model once, on its own rows alone.

    Args:
        model: What they start from; a callable builds a blank one. Yours is left as it is.
        partitions: Client -> its rows.
        training: How each trains; its seed is not used.
        task: Chooses the loss.
        seed: Of blank models and of all training.
        same_start: Whether all start from the same model. With False each starts from a blank one
            of its own, as clients do that never talked to each other.
        progress: Called with (client, clients done, clients in all).

    Example:
        >>> import torch
        >>> rows = Rows(torch.eye(4), torch.tensor([0, 1, 0, 1]))
        >>> sorted(trained_apart(nn.Linear(4, 2), {"b": rows, "a": rows}))
        ['a', 'b']
    """
    found = {}
    start = copy.deepcopy(model) if isinstance(model, nn.Module) else blank(model, seed)
    for place, name in enumerate(sorted(partitions)):
        own = start if same_start else blank(model, derived_seed(seed, "start", name))
        found[name] = copy.deepcopy(own)
        settings = replace(training, seed=derived_seed(seed, "apart", name))
        train(found[name], partitions[name], loss_of(task), settings)
        if progress is not None:
            progress(name, place + 1, len(partitions))
    return found


def average(
    clients: Clients,
    *,
    num_examples: Mapping[str, float] | None = None,
    method: str | Aggregator = "fedavg",
    align: Align | None = None,
) -> nn.Module:
    """Make one model of clients' models of one architecture.

    Use it where clients started from the same model, or where they are aligned first: units of
    networks that were trained from different starts stand in different orders.

    Args:
        clients: Their models; they are left as they are.
        num_examples: Client -> its number of examples, where those with more are to count more.
        method: An aggregator or a merge method that needs no server's model.
        align: Brings the units of all models into one order before they are averaged.

    Returns:
        A model of their architecture, in eval mode. Statistics of BatchNorm are averaged, too;
        ``update_batch_norm`` estimates them anew, and is worth it where models were aligned.

    Raises:
        MissingInput: No clients, or a method that needs the server's model.
        MismatchedCheckpoints: Models whose tensors differ, or hold NaN; all are listed.
        InvalidParameter: ``num_examples`` for other clients.

    Example:
        >>> import torch
        >>> one, other = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = nn.init.constant_(one.weight, 1.0), nn.init.constant_(other.weight, 3.0)
        >>> average({"a": one, "b": other}, num_examples={"a": 3, "b": 1}).weight.item()
        1.5
    """
    counts = _counts(clients, num_examples)
    names = sorted(clients)
    models = [clients[name] for name in names]
    if align is not None:
        models = align([copy.deepcopy(model) for model in models])
    updates = [
        Update(name, tensors_of(model), num_examples=counts[name] if num_examples else None)
        for name, model in zip(names, models, strict=True)
    ]
    done = aggregate_updates(None, updates, as_aggregator(method))
    if left := [f"{each.client}: {each.reason}" for each in done.record.left_out]:
        raise MismatchedCheckpoints(
            f"{len(left)} of {len(models)} models cannot be averaged with the others:\n"
            f"{listing(left)}\nAverage those of one architecture, or use the ensemble or students "
            "of all."
        )
    result = copy.deepcopy(clients[names[0]])
    load_state(result, done.tensors)
    return result.eval()


def together(
    clients: Clients,
    *,
    num_examples: Mapping[str, float] | None = None,
    task: Task = "classification",
) -> Ensemble:
    """Let clients' models of any architectures answer as one: the mean of their probabilities.

    Use it as the best that one shot can do without data: nothing is lost by averaging weights,
    and every answer costs all models.

    Args:
        clients: Their models, with the same classes; they are left as they are.
        num_examples: Client -> its number of examples, where those with more are to count more.
        task: How outputs are read; values are averaged for regression.

    Raises:
        MissingInput: No clients.
    """
    counts = _counts(clients, num_examples)
    members = {name: frozen_view(clients[name]) for name in sorted(clients)}
    space = "values" if task == "regression" else "probabilities"
    rule = weighted(weights=[counts[name] for name in members], space=space)
    return Ensemble(members, rule, task=task)


def taught(
    clients: Clients,
    unlabelled: Examples,
    training: Training,
    *,
    num_examples: Mapping[str, float] | None = None,
    students: Sequence[nn.Module] = (),
    align: Align | None = None,
    pooling: Pooling = "probabilities",
    temperature: float = 1.0,
    task: Task = "classification",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[tuple[str, ...], nn.Module]:
    """FedDF in one shot: students that learn what all clients say on the server's own data.

    Use it where clients have different architectures, or where their weights have little in
    common: it needs no labels, and the result is one small model.

    Args:
        clients: Their models; they are left as they are.
        unlabelled: The server's data; targets are not looked at.
        training: How students learn.
        num_examples: For the averages that students start from.
        students: What to train instead: copies of these.
        align: As in ``average``.
        pooling: What the clients' answers are the mean of. The default suits models that were
            trained apart for long, each on its own mix of classes; "logits" is the paper's.
        temperature: Above 0.
        task: "classification" or "regression".
        progress: Called after each step.

    Returns:
        One student for each architecture among the clients, by the clients that have it: it
        starts from their average. With ``students``, one for each, by its number.

    Raises:
        MissingInput: No clients.
        DataError: Clients with other classes.

    References:
        Lin, Kong, Stich and Jaggi, Ensemble distillation for robust model fusion in federated
        learning, 2020, arXiv:2006.07242, algorithm 3, which takes the mean of logits. On digits
        dealt out with concentration 0.3 that cost 20 points in one shot: where a client has never
        seen a class, its confident "never" outvotes those who have.
    """
    _counts(clients, num_examples)
    said = [feddf.answers(clients[name], unlabelled, task) for name in sorted(clients)]
    teacher = feddf.pooled(said, pooling, task)
    starts: dict[tuple[str, ...], nn.Module] = {
        (str(number),): copy.deepcopy(each) for number, each in enumerate(students, start=1)
    }
    if not starts:
        for names in _alike(clients):
            own = {name: clients[name] for name in names}
            counts = {name: num_examples[name] for name in names} if num_examples else None
            starts[names] = average(own, num_examples=counts, align=align)
    for model in starts.values():
        feddf.distil(
            model.requires_grad_(),
            unlabelled,
            teacher,
            training,
            temperature=temperature,
            task=task,
            progress=progress,
        )
    return starts


def _alike(clients: Clients) -> list[tuple[str, ...]]:
    """The clients by architecture: those whose tensors have the same names and shapes."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(clients):
        tensors = tensors_of(clients[name])
        shape = (type(clients[name]), *((n, t.shape, t.dtype) for n, t in tensors.items()))
        groups.setdefault(shape, []).append(name)
    return [tuple(names) for names in groups.values()]


def _counts(clients: Clients, given: Mapping[str, float] | None) -> dict[str, float]:
    """Client -> its number of examples; 1 each where none are given."""
    if not clients:
        raise MissingInput("One-shot federation takes at least one client's model. Got none.")
    require_modules(clients)
    if given is None:
        return dict.fromkeys(clients, 1.0)
    if odd := sorted({*clients} ^ {*given}):
        raise InvalidParameter(
            f"'num_examples' must have one number for each client. These differ:\n{listing(odd)}"
        )
    return dict(given)
