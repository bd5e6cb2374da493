"""One model trained from scratch, or on from what it is, on the union of partitions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from alloykit.checkpoints.wording import counted
from alloykit.data.examples import Examples
from alloykit.data.storage import MEMORY_LIMIT
from alloykit.errors import InvalidParameter, MissingInput, listing
from alloykit.training.history import History
from alloykit.training.loop import train
from alloykit.training.losses import loss_of
from alloykit.training.order import derived_seed
from alloykit.training.rows import Rows, hold_all
from alloykit.training.scoring import Validation
from alloykit.training.seeding import borrowed_generators, devices_of
from alloykit.training.settings import Training
from alloykit.types import Task


def retrain(
    module: nn.Module,
    data: Rows,
    training: Training = Training(),  # noqa: B008
    *,
    task: Task,
    validation: Validation | None = None,
    **options: Any,
) -> History:
    """Train a model in place on data with the loss of its task.

    Use it for the ceiling of a comparison (a ``blank`` model, or the weight average, on the union
    of the partitions) and for its floors (the same on the held-out split alone).

    Args:
        module: The model; ``blank(member, seed)`` starts from scratch.
        data: Labelled examples: ``union(partitions)``, or ``hold(split)``.
        training: How.
        task: Chooses the loss.
        validation: Chooses the epoch whose weights are kept; None keeps the last one's.
        options: ``after_step``, ``progress``, ``snapshot``, ... as ``train`` takes them.

    Example:
        >>> x = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> history = retrain(
        ...     nn.Linear(1, 1), Rows(x, 2 * x), Training(epochs=2), task="regression"
        ... )
        >>> history.steps
        2
    """
    return train(module, data, loss_of(task), training, validation=validation, **options)


def union(partitions: Sequence[Examples], *, memory_limit: int = MEMORY_LIMIT) -> Rows:
    """The examples of all partitions, one partition after the other.

    An example that lies in two partitions counts twice, as it does when their owners pool them.

    Args:
        partitions: At least one; their inputs have one shape and dtype.
        memory_limit: Bytes of inputs kept in memory; larger ones are memory-mapped.

    Raises:
        MissingInput: No partition.
        DataError: Inputs or targets that differ between partitions.
    """
    if not partitions:
        raise MissingInput("union takes at least one partition. Got none.")
    return hold_all(partitions, memory_limit)


def trainable(model: nn.Module) -> nn.Module:
    """The model, with all of its floating parameters to train: members come frozen."""
    for _, parameter in _known(model):
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def blank(module: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """A new model of the same architecture, initialised anew, with everything to train.

    Every module's ``reset_parameters`` is called, parts before the whole, as when it was built.
    Buffers that this resets (BatchNorm's statistics) are new; others (masks, positions, the
    normalisation of inputs) are constants and stay. Tied tensors stay tied.

    Use it to train the architecture of a member from scratch. The global random state is left
    alone; the same seed gives the same parameters.

    Args:
        module: A model, which is left as it is; or a callable that builds one.
        seed: Of the numbers drawn, at least 0.

    Raises:
        InvalidParameter: Parameters that no ``reset_parameters`` sets; all are listed.

    Example:
        >>> member = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> one, other = blank(member, seed=1), blank(member, seed=1)
        >>> bool((one[0].weight == other[0].weight).all())
        True
        >>> bool((one[0].weight == member[0].weight).any())
        False
    """
    if not isinstance(module, nn.Module):
        with borrowed_generators([]) as start:
            start(derived_seed(seed, "blank"))
            built = module() if callable(module) else module
        if not isinstance(built, nn.Module):
            raise InvalidParameter(
                "A blank model is made of a module, or of a callable that builds one. Got "
                f"{module!r}{', which returned ' + repr(built) if callable(module) else ''}."
            )
        return built
    new = copy.deepcopy(module)
    with torch.no_grad(), borrowed_generators(devices_of(new)) as start:
        for _, parameter in _known(new):
            # What no reset sets stays NaN, and is found that way.
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.fill_(torch.nan)
        start(derived_seed(seed, "blank"))
        for part in _parts_first(new, set()):
            reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
            if callable(reset):
                reset()
    _check_initialised(new)
    return new.requires_grad_()


def _known(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that have a shape; those of lazy modules are blank until the first batch."""
    return ((name, p) for name, p in module.named_parameters() if not is_lazy(p))


def _parts_first(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    if module in seen:
        return
    seen.add(module)
    for part in module.children():
        yield from _parts_first(part, seen)
    yield module


def _check_initialised(module: nn.Module) -> None:
    left = [
        f"{name} {list(p.shape)} of {type(module.get_submodule(name.rpartition('.')[0])).__name__}"
        for name, p in _known(module)
        if not (p.is_floating_point() or p.is_complex()) or bool(p.isnan().any())
    ]
    if left:
        raise InvalidParameter(
            f"{counted(len(left), 'parameter')} of the model cannot be initialised anew, because "
            f"no reset_parameters sets them:\n{listing(left)}\n"
            "Give a callable that builds a new model instead of the model, or add a method "
            "reset_parameters to the modules that own them."
        )
