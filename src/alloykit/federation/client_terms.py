"""What FedProx, SCAFFOLD and FedNova ask of a client: terms of its loss, and numbers it sends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from alloykit.errors import MissingInput, listing
from alloykit.federation.limits import fraction, not_negative, positive, refuse, whole
from alloykit.training.schedule import factor
from alloykit.training.settings import Training

Named = Mapping[str, Tensor]


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def proximal(model: nn.Module, server: Named, mu: float) -> Tensor:
    """FedProx's term, which keeps a client near the server's model: mu / 2 · |model − server|².

    Add it to the loss of each batch; only what is trained counts. Use it when clients hold unlike
    data or take unequal numbers of steps.

    Args:
        model: The client's, in training.
        server: The tensors that it started from, by name, on the model's device.
        mu: At least 0; the paper tries 0.001, 0.01, 0.1 and 1.

    Raises:
        InvalidParameter: mu is negative.
        MissingInput: The server's model lacks a parameter.

    Shapes:
        -> []

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> proximal(model, {"weight": torch.tensor([[1.0]])}, mu=0.5).item()
        1.0

    References:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, Federated optimization in heterogeneous
        networks, 2020, arXiv:1812.06127, equation 2.
    """
    refuse("proximal", [not_negative("mu", mu)])
    parameters = trained(model)
    _require(parameters, server, "the server's model")
    terms = [(tensor - server[name]).square().sum() for name, tensor in parameters.items()]
    return torch.stack(terms).sum() * (mu / 2.0)


def correction(model: nn.Module, own: Named, control: Named) -> Tensor:
    """SCAFFOLD's term, with the gradient control − own: Σ model · (control − own).

    Add it to the loss of each batch: a step of plain SGD is then the paper's, against
    gradient − own + control. Parameters that a control variate does not have count as zero there,
    as all do in the first round.

    Args:
        model: The client's, in training.
        own: The client's control variate, by name, on the model's device.
        control: The server's.

    Raises:
        MissingInput: A control variate has a name that is no trained parameter.

    Shapes:
        -> []

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> correction(model, {}, {"weight": torch.tensor([[2.0]])}).backward()
        >>> model.weight.grad
        tensor([[2.]])

    References:
        Karimireddy et al., SCAFFOLD, 2020, arXiv:1910.06378, algorithm 1, line 10.
    """
    parameters = trained(model)
    _require(own, parameters, "the trained parameters")
    _require(control, parameters, "the trained parameters")
    terms = [(parameters[name] * tensor).sum() for name, tensor in control.items()]
    terms += [-(parameters[name] * tensor).sum() for name, tensor in own.items()]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def control_change(begun: Named, ended: Named, control: Named, path: float) -> dict[str, Tensor]:
    """What a client's control variate changes by in one round: (begun − ended) / path − control.

    The client adds it to its own and sends it. Option II of the paper: the mean gradient along
    the client's way takes the place of the old control variate.

    Args:
        begun: The tensors that the client started from, by name.
        ended: Those that it ended with; its names are the result's.
        control: The server's control variate; names that it does not have count as zero.
        path: Sum of the step sizes of its plain SGD, above 0: learning rate ·
            ``normalised_steps``.

    Raises:
        InvalidParameter: path is not above 0.
        MissingInput: begun lacks a name of ended.

    Example:
        >>> begun, ended = {"w": torch.tensor([4.0])}, {"w": torch.tensor([3.0])}
        >>> control_change(begun, ended, {"w": torch.tensor([0.5])}, path=0.5)
        {'w': tensor([1.5000])}

    References:
        Karimireddy et al., SCAFFOLD, 2020, arXiv:1910.06378, algorithm 1, lines 12 and 13.
    """
    refuse("control_change", [positive("path", path)])
    _require(ended, begun, "what the client started from")
    changes = {}
    for name, tensor in ended.items():
        pull = (begun[name] - tensor) / path
        changes[name] = pull - control[name] if name in control else pull
    return changes


def normalised_steps(training: Training, steps: int, mu: float = 0.0) -> float:
    """How many steps of plain SGD at the peak learning rate a client's training counts as.

    What FedNova divides by, and SCAFFOLD with the learning rate. The schedule's smaller steps
    count less, those with momentum more. AdamW's steps are counted as SGD's without momentum.

    Args:
        training: How it trained.
        steps: Local steps, at least 1.
        mu: Of the proximal term, at least 0.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> normalised_steps(Training(schedule="linear"), 4)
        2.5

    References:
        Wang et al., Tackling the objective inconsistency problem, 2020, arXiv:2007.07481,
        section 4: the 1-norm of aᵢ.
    """
    refuse("normalised_steps", [whole("steps", steps, 1), not_negative("mu", mu)])
    factors = (factor(training, step, steps) for step in range(steps))
    return counted_steps(factors, training.momentum, training.learning_rate * mu)


def counted_steps(factors: Iterable[float], momentum: float = 0.0, proximal: float = 0.0) -> float:
    """The weights of all gradients in the change of a client's model, summed.

    With momentum a gradient counts again in later steps; with a proximal term its effect wears
    off, and the term's own gradient goes through the momentum as it does in training.

    Args:
        factors: Of the learning rate in each step: ``[1.0] * steps`` where it does not change.
        momentum: Of the client's SGD, in [0, 1).
        proximal: Learning rate · mu, in [0, 1).

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> counted_steps([1.0, 1.0]), counted_steps([1.0, 1.0], momentum=0.5)
        (2.0, 2.5)
    """
    refuse("counted_steps", [fraction("momentum", momentum), fraction("proximal", proximal)])
    moved, speed = 0.0, 0.0
    for each in factors:
        speed = momentum * speed + 1.0 - proximal * moved
        moved += each * speed
    return moved


def _require(names: Iterable[str], given: Named, what: str) -> None:
    if missing := [name for name in names if name not in given]:
        raise MissingInput(
            f"These tensors are not among {what}, which has {len(given)}:\n{listing(missing)}\n"
            "Give them by the names of model.named_parameters()."
        )
