"""How a federation goes: the numbers of its rounds, checked all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from alloykit.errors import AlloyError, InvalidParameter, did_you_mean, listing
from alloykit.federation.checks import Checks
from alloykit.federation.contract import Aggregator
from alloykit.federation.poisoning import Attack
from alloykit.numerics import is_number, is_whole
from alloykit.training.settings import Training

Pooling = Literal["logits", "probabilities"]

LOCAL = Training(
    epochs=1,
    batch_size=32,
    learning_rate=0.05,
    weight_decay=0.0,
    schedule="constant",
    optimizer="sgd",
)
"""How clients train where nothing else is asked for: one epoch of plain SGD in batches of 32."""


@dataclass(frozen=True)
class Federation:
    """How clients and a server make one model in rounds.

    Args:
        rounds: At least 1.
        method: A registered aggregator or merge method, by name, or one that is built.
        parameters: Of a method given by name.
        fraction: Part of the clients that each round asks, in (0, 1]; at least one is asked.
        clients_per_round: How many it asks, instead of a fraction.
        training: How each client trains in a round. Its seed is not used: order, dropout and
            augmentation depend on ``seed``, the round and the client's name.
        checks: What is asked of updates before they count.
        proximal: mu of FedProx: the clients' loss gains mu/2 · ‖w - server‖²; 0 leaves it out.
        keep: Globs of tensor names that each client keeps to itself, as FedBN does with
            ("*.bn*",) or whatever its normalisation layers are called.
        drop_out: Probability that a client that was asked never answers, in [0, 1).
        stragglers: Probability that a client is slow, in [0, 1].
        delay: What becomes of slow ones: 0, they train fewer epochs (1 to epochs - 1); k, their
            update comes 1 to k rounds later, which fedbuff can use and others leave out.
        attacks: Client -> what it does instead of its part: an ``Attack``, or its kind.
        distillation: FedDF: how the server trains the new model to agree with the mean of the
            clients' answers on its own unlabelled data; None leaves it out.
        temperature: Of that distillation, above 0.
        pooling: "logits" or "probabilities": what the clients' answers are the mean of. The
            latter gives more in the first rounds on skewed data, and less in the later ones.
        seed: Of the clients asked, drop-outs, stragglers, attacks and all training; at least 0.

    Raises:
        InvalidParameter: Numbers outside their ranges; all are listed.

    Example:
        >>> Federation(rounds=50, method="trimmed_mean", fraction=0.1).training.optimizer
        'sgd'

    References:
        McMahan et al., 2017, arXiv:1602.05629 (rounds, fraction); Li et al., Federated
        optimization in heterogeneous networks, 2020, arXiv:1812.06127 (FedProx; its stragglers
        train a random part of their epochs); Li et al., FedBN, 2021, arXiv:2102.07623; Lin, Kong,
        Stich and Jaggi, Ensemble distillation for robust model fusion in federated learning, 2020,
        arXiv:2006.07242 (FedDF).
    """

    rounds: int = 10
    method: str | Aggregator = "fedavg"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    fraction: float = 1.0
    clients_per_round: int | None = None
    training: Training = LOCAL
    checks: Checks = field(default_factory=Checks)
    proximal: float = 0.0
    keep: Sequence[str] = ()
    drop_out: float = 0.0
    stragglers: float = 0.0
    delay: int = 0
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    distillation: Training | None = None
    temperature: float = 1.0
    pooling: Pooling = "logits"
    seed: int = 0

    def __post_init__(self) -> None:
        wrong: list[str] = []
        taken = {name: _taken(self, name, take, wrong) for name, take in TAKES.items()}
        for name, value in taken.items():
            object.__setattr__(self, name, value)
        if wrong := [*wrong, *_mistakes(self)]:
            raise InvalidParameter(f"No federation can go by these settings:\n{listing(wrong, 30)}")

    @property
    def method_name(self) -> str:
        """The method's registered name."""
        return self.method if isinstance(self.method, str) else self.method.name

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON values; ``Federation.of`` takes them back."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        built = isinstance(self.method, Aggregator)
        return {
            **plain,
            "method": self.method_name,
            "parameters": dict(self.method.parameters if built else self.parameters),  # type: ignore[union-attr]
            "training": self.training.to_json(),
            "checks": self.checks.to_json(),
            "keep": list(self.keep),
            "attacks": {name: attack.to_json() for name, attack in self.attacks.items()},
            "distillation": self.distillation and self.distillation.to_json(),
        }

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Federation:
        """The settings of a mapping; what it leaves out has its default.

        Raises:
            InvalidParameter: Names that are no settings, or numbers outside their ranges.

        Example:
            >>> Federation.of({"rounds": 3, "training": {"epochs": 2}}).training.batch_size
            32
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if odd := [name for name in settings if name not in known]:
            lines = [f"{name!r}.{did_you_mean(str(name), known)}" for name in odd]
            raise InvalidParameter(
                f"A federation has no such settings:\n{listing(lines)}\nIt has: {', '.join(known)}."
            )
        return cls(**settings)


def local_training(given: Training | Mapping[str, Any] | None) -> Training:
    """How clients train; what a mapping leaves out is as in ``LOCAL``.

    Example:
        >>> local_training({"epochs": 5}).learning_rate
        0.05
    """
    if given is None or isinstance(given, Training):
        return given or LOCAL
    if isinstance(given, Mapping):
        adamw = given.get("optimizer") == "adamw"
        start = Training(epochs=1, batch_size=32, schedule="constant") if adamw else LOCAL
        return Training.of({**start.to_json(), **given})
    return Training.of(given)


def _checks(given: Any) -> Checks:
    return given if isinstance(given, Checks) else Checks.of(given)


def _attacks(given: Any) -> dict[str, Attack]:
    if not isinstance(given, Mapping):
        raise InvalidParameter(f"'attacks' must be a mapping, client -> attack. Got {given!r}.")
    return {str(client): Attack.of(attack) for client, attack in given.items()}


def _distillation(given: Any) -> Training | None:
    return given if given is None or isinstance(given, Training) else Training.of(given)


def _globs(given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidParameter(f"'keep' must be several globs, in a list. Got {given!r}.")
    return tuple(map(str, given))


TAKES: Mapping[str, Callable[[Any], Any]] = {
    "training": local_training,
    "checks": _checks,
    "keep": _globs,
    "attacks": _attacks,
    "distillation": _distillation,
}


def _taken(given: Federation, name: str, take: Callable[[Any], Any], wrong: list[str]) -> Any:
    """The setting as its own type; its mistakes go to the others."""
    try:
        return take(getattr(given, name))
    except (AlloyError, AttributeError, TypeError) as error:
        head, *lines = str(error).splitlines()
        said = lines if head.endswith(":") else [head, *lines]
        wrong += [f"{name}: {line.strip()}" for line in said]
        return DEFAULTS[name]


DEFAULTS: Mapping[str, Any] = {
    "training": LOCAL,
    "checks": Checks(),
    "keep": (),
    "attacks": {},
    "distillation": None,
}


def _mistakes(given: Federation) -> list[str]:
    wrong = [
        _whole(given, "rounds", 1),
        "" if isinstance(given.method, str | Aggregator) else _no_method(given.method),
        "" if isinstance(given.parameters, Mapping) else "'parameters' must be a mapping.",
        _real(given, "fraction", "in (0, 1]", lambda x: 0 < x <= 1),
        given.clients_per_round is not None and _whole(given, "clients_per_round", 1),
        _real(given, "proximal", "at least 0", lambda x: 0 <= x < float("inf")),
        _real(given, "drop_out", "in [0, 1)", lambda x: 0 <= x < 1),
        _real(given, "stragglers", "in [0, 1]", lambda x: 0 <= x <= 1),
        _whole(given, "delay", 0),
        _real(given, "temperature", "above 0", lambda x: 0 < x < float("inf")),
        _whole(given, "seed", 0),
    ]
    if given.pooling not in get_args(Pooling):
        wrong.append(f"'pooling' must be logits or probabilities. Got {given.pooling!r}.")
    return [line for line in (*wrong, *_contradictions(given)) if line]


def _contradictions(given: Federation) -> list[str]:
    built = isinstance(given.method, Aggregator)
    wrong = [
        (built and given.parameters, "'parameters' are for a method by name; this one is built."),
        (
            given.clients_per_round is not None and given.fraction != 1,
            "'fraction' and 'clients_per_round' exclude each other.",
        ),
        (
            given.proximal * given.training.learning_rate >= 1,
            "'proximal' times the clients' learning_rate must be below 1, or steps overshoot.",
        ),
        (
            given.training.patience is not None,
            "training: clients have no validation data, so 'patience' must be left out.",
        ),
        (
            given.stragglers and given.delay == 0 and given.training.epochs == 1,
            "'stragglers' with delay=0 train fewer epochs, so training must have 2 at least.",
        ),
        (
            given.distillation is not None and given.distillation.patience is not None,
            "distillation: it is on unlabelled data, so 'patience' must be left out.",
        ),
    ]
    return [line for bad, line in wrong if bad]


def _no_method(given: Any) -> str:
    return f"'method' must be a name or an aggregator. Got {given!r}."


def _whole(given: Federation, name: str, least: int) -> str:
    value = getattr(given, name)
    if is_whole(value) and value >= least:
        return ""
    return f"{name!r} must be a whole number of at least {least}. Got {value!r}."


def _real(given: Federation, name: str, range_text: str, fits: Callable[[float], bool]) -> str:
    value = getattr(given, name)
    if is_number(value) and fits(value):
        return ""
    return f"{name!r} must be a number {range_text}. Got {value!r}."
