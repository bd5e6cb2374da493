"""The verb aggregate: models that clients trained apart -> one model, without a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alloykit.api.inputs import files_of, is_path, sources_of, target_file
from alloykit.api.planning import DIGESTS
from alloykit.checkpoints.digests import content_digest
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.provenance import provenance
from alloykit.checkpoints.wording import counted, shown
from alloykit.checkpoints.writing import check_target, write_safetensors
from alloykit.data.storage import MEMORY_LIMIT
from alloykit.errors import CheckpointError, InvalidParameter, MissingInput, listing
from alloykit.execution.members import file_names, several
from alloykit.execution.results import in_form_of
from alloykit.federation.checks import Checks
from alloykit.federation.choosing import as_aggregator
from alloykit.federation.contract import Aggregator, ServerState
from alloykit.federation.holding import in_one_line
from alloykit.federation.round import Round
from alloykit.federation.update import RoundRecord, Update
from alloykit.types import Checkpoint, TensorSpec

AT_HAND = (Mapping, Sequence, nn.Module)
"""Updates that are all there at once, rather than coming one by one."""


@dataclass(frozen=True, eq=False)
class Aggregation:
    """The result of ``aggregate``.

    Attributes:
        model: The new model, in the form of the server's (of the first update where there is no
            server): a module, a state dict, a list of arrays; a state dict for files; the path
            where an output was given.
        state: What to pass as ``state`` to the next round.
        record: Which clients count, and why others do not.
    """

    model: Any
    state: ServerState
    record: RoundRecord


def aggregate(
    server: Any,
    updates: Iterable[Any] | Mapping[str, Any],
    method: str | Aggregator = "fedavg",
    *,
    num_examples: Sequence[float] | Mapping[str, float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    state: ServerState | None = None,
    checks: Checks | Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    output: str | Path | None = None,
    overwrite: bool = False,
    trust_pickle: bool = False,
) -> Aggregation:
    """Combine models that clients trained on data of their own, as a server of federated learning.

    Use it where the rounds are run by something else, or there is only one round. ``federate``
    simulates whole rounds; the Flower plug-in runs them on many machines.

    Args:
        server: The model that the clients started from, in any form that ``merge`` takes; None
            for aggregators that do without (fedavg, median, krum, ...).
        updates: One model per client: a mapping from client to model, a sequence, or anything
            iterable of models or ``Update``. What comes one by one is copied, in memory up to
            1 GiB and beyond that to temporary files; for aggregators that are sums, with
            ``checks`` that do not compare clients, it is added up instead, and nothing is kept.
        method: Name of an aggregator, of a merge method, or an aggregator.
        num_examples: Examples of each client, in order or by name. Aggregators that average use
            them as weights; without them all count the same.
        parameters: The aggregator's own parameters.
        state: What the last round returned, for aggregators with a memory (fedadam, ...).
        checks: Which updates count, as ``Checks`` or a mapping of its limits.
        keep: Globs of tensors that are not aggregated: they stay as the server has them.
        output: A ``.safetensors`` file to write, tensor by tensor, instead of returning tensors.
        overwrite: Whether an existing output may be replaced.
        trust_pickle: Open pickled checkpoints that refer to unknown classes (nothing is run).

    Raises:
        MissingInput: No updates, none that can be used, or no server where one is needed.
        UnknownName: There is no such aggregator.
        InvalidParameter: Parameters, checks or numbers of examples that cannot be used.
        CheckpointError: A server that cannot be read, or a result outside the range of its dtype.
        DataError: An update that cannot be used, with ``on_bad="error"``.
        OutputExists: The output exists, or is one of the inputs.

    Example:
        >>> import torch
        >>> clients = {"here": {"w": torch.tensor([1.0])}, "there": {"w": torch.tensor([4.0])}}
        >>> found = aggregate(None, clients, num_examples={"here": 200, "there": 100})
        >>> found.model["w"]
        tensor([2.])
    """
    aggregator = as_aggregator(method, parameters)
    limits = checks if isinstance(checks, Checks) else Checks.of(checks or {})
    target = None if output is None else target_file(output)
    if target is not None:
        check_target(target, overwrite, files_of([server]))
    origin = None if server is None else _opened(server, trust_pickle)
    there = isinstance(updates, AT_HAND)
    round_ = Round(
        origin, aggregator, state=state, checks=limits, keep=keep,
        memory_limit=None if there else MEMORY_LIMIT,
    )  # fmt: skip
    models, digests = dict[str, Any](), dict[str, str]()
    for update in _updates(updates, num_examples):
        client, stays = str(update.client), there or is_path(update.model)
        try:
            refused = round_.add(_given(update, trust_pickle))
        except CheckpointError as error:
            round_.leave_out(client, refused := in_one_line(error))
        if not refused and (stays or not models):
            models[client] = update.model
        if not refused and not stays and target is not None:
            # What comes one by one may be trained on by the time that the round ends.
            digests[client] = _digest(update.model, client)
    if target is not None:
        return _written(round_, target, models, digests, server, overwrite, aggregator)
    found = round_.close()
    counts = [each.client for each in found.record.counted if each.client in models]
    form = models[counts[0]] if server is None and counts else server
    return Aggregation(in_form_of(form, found.tensors), found.state, found.record)


def _opened(model: Any, trust_pickle: bool, name: str = "the server") -> Checkpoint:
    return open_checkpoint(model, name=name, trust_pickle=trust_pickle)


def _updates(
    updates: Iterable[Any] | Mapping[str, Any],
    num_examples: Sequence[float] | Mapping[str, float] | None,
) -> Iterator[Update]:
    """The updates with the names of their clients and their numbers of examples."""
    if isinstance(updates, AT_HAND):
        models = several(updates)
        names = list(models) if isinstance(models, Mapping) else _names(models)
        pairs = zip(names, sources_of(models), strict=True)
        every: Iterable[Update] = [_as_update(model, str(name)) for name, model in pairs]
        _check_count(num_examples, [str(update.client) for update in every])
    else:
        if num_examples is not None and not isinstance(num_examples, Mapping):
            raise InvalidParameter(
                "Updates that come one by one say themselves how many examples they have: give "
                "Update(client, model, num_examples=...), or num_examples by client."
            )
        every = (_as_update(each, f"client {number}") for number, each in enumerate(updates, 1))
    for place, update in enumerate(every):
        if isinstance(num_examples, Mapping):
            count = num_examples.get(str(update.client), update.num_examples)
            yield replace(update, num_examples=count)
        elif num_examples is not None:
            yield replace(update, num_examples=num_examples[place])
        else:
            yield update


def _as_update(model: Any, name: str) -> Update:
    return model if isinstance(model, Update) else Update(name, model)


def _names(models: Sequence[Any]) -> list[str]:
    files = file_names([None if isinstance(model, Update) else model for model in models])
    return [name or f"client {number}" for number, name in enumerate(files, start=1)]


def _check_count(
    num_examples: Sequence[float] | Mapping[str, float] | None, names: Sequence[str]
) -> None:
    if isinstance(num_examples, Mapping):
        wrong = [str(name) for name in num_examples if name not in names]
        if wrong:
            raise InvalidParameter(
                f"num_examples names {', '.join(wrong)}; the clients are {', '.join(names)}."
            )
    elif num_examples is not None and len(num_examples) != len(names):
        raise InvalidParameter(
            f"num_examples has {counted(len(num_examples), 'number')} for "
            f"{counted(len(names), 'update')}. Give one per update, in their order, or by name."
        )


def _given(update: Update, trust_pickle: bool) -> Update:
    """The update with its file opened, where that takes trust."""
    if not trust_pickle or not is_path(update.model):
        return update
    return replace(update, model=_opened(update.model, trust_pickle, str(update.client)))


def _written(
    round_: Round, target: Path, models: Mapping[str, Any], digests: Mapping[str, str],
    server: Any, overwrite: bool, aggregator: Aggregator,
) -> Aggregation:  # fmt: skip
    """Close a round into a file that says which models it was made of."""
    every = [*models.values(), *([] if server is None else [server])]

    def write(
        specs: Mapping[str, TensorSpec],
        tensors: Iterator[tuple[str, Tensor]],
        record: RoundRecord,
    ) -> None:
        names = [each.client for each in record.counted]
        inputs = {name: digests.get(name) or _digest(models[name], name) for name in names}
        inputs |= {} if server is None else {"server": _digest(server, "server")}
        metadata = provenance(
            inputs=inputs,
            method=aggregator.name,
            parameters=aggregator.parameters,
            weights=_weights(record),
        )
        write_safetensors(
            target, specs, tensors, metadata=metadata, overwrite=overwrite, inputs=files_of(every)
        )

    found = round_.close(write)
    if found.record.kept_server:
        reasons = [f"{shown(each.client)}: {each.reason}" for each in found.record.left_out]
        raise MissingInput(
            f"{target} was not written: {found.record.kept_server}.\n{listing(reasons)}"
        )
    return Aggregation(target, found.state, found.record)


def _weights(record: RoundRecord) -> dict[str, float] | None:
    known = {c.client: c.coefficient for c in record.counted if c.coefficient is not None}
    return known if len(known) == len(record.counted) else None


def _digest(model: Any, name: str) -> str:
    if is_path(model):
        return DIGESTS["fingerprint"](model)
    return content_digest(_opened(model, trust_pickle=False, name=name))
