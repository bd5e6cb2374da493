"""Bad calls of fuse, distill, retrain and adapted: the form of a case, and bad numbers and data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import alloykit
from alloykit.ensembling.adapting import adapted

NAN, INF = float("nan"), float("inf")


def _data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return inputs, torch.randint(3, (count,), generator=generator)


X, Y = _data(60, 0)
X2, Y2 = _data(40, 1)
PARTS = {"a": (X[:30], Y[:30]), "b": (X[30:], Y[30:])}
ONCE = {"epochs": 1}


def net(outputs: int = 3, inputs: int = 4, seed: int = 0) -> nn.Module:
    """A small net; making it draws no random numbers of the test."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 5), nn.ReLU(), nn.Linear(5, outputs))


class Odd(nn.Module):
    """A net that does something to what it returns."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.change = net(seed=3), change

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.change(self.inner(inputs))


class Given:
    """What a call may use: a student, two members, an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.student, self.folder = net(seed=9), folder
        self.members: dict[str, nn.Module] = {"a": net(seed=1), "b": net(seed=2)}

    def distill(self, **changes: Any) -> Any:
        given = {"student": self.student, "teachers": self.members, "train": (X, Y)}
        return alloykit.distill(**{**given, "training": ONCE, **changes})

    def fuse(self, **changes: Any) -> Any:
        given = {"members": self.members, "validation": (X, Y)}
        return alloykit.fuse(**{**given, **changes})

    def retrain(self, model: Any = None, train: Any = (X, Y), **changes: Any) -> Any:
        model = self.student if model is None else model
        return alloykit.retrain(model, train, **{"training": ONCE, **changes})

    def stored(self, damage: Callable[[Path], Any], **changes: Any) -> Any:
        return self._again("stored", damage, changes)

    def snapshot(self, damage: Callable[[Path], Any] = lambda _: None, **changes: Any) -> Any:
        return self._again("snapshot", damage, changes)

    def _again(self, option: str, damage: Callable[[Path], Any], changes: dict[str, Any]) -> Any:
        place = self.folder / option
        self.distill(**{option: place})
        damage(place)
        self.before = contents(self.folder)
        return self.distill(**{option: place, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def bytes_of(*modules: nn.Module) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        digest.update(str([part.training for part in module.modules()]).encode())
        digest.update(str([p.requires_grad for p in module.parameters()]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Case:
    """A bad call, the error's class by name, and words that its text must hold."""

    name: str
    call: Callable[[Given], Any]
    error: str
    words: tuple[str, ...]


def distilling(name: str, error: str, *words: str, **changes: Any) -> Case:
    return Case(f"distill: {name}", lambda g: g.distill(**changes), error, words)


def fusing(name: str, error: str, *words: str, **changes: Any) -> Case:
    return Case(f"fuse: {name}", lambda g: g.fuse(**changes), error, words)


def retraining(name: str, error: str, *words: str, **changes: Any) -> Case:
    return Case(f"retrain: {name}", lambda g: g.retrain(**changes), error, words)


def adapting(name: str, error: str, *words: str, **changes: Any) -> Case:
    return Case(f"adapted: {name}", lambda g: adapted(g.student, **changes), error, words)


def folding(name: str, error: str, *words: str, **changes: Any) -> Case:
    options = {"validation": None, "train": PARTS, "out_of_fold": lambda *_: net(), **changes}
    return Case(f"out of fold: {name}", lambda g: g.fuse(**options), error, words)


ONE_NAN = torch.where(torch.arange(60)[:, None] == 3, NAN, X)
HOT = nn.functional.one_hot(Y).float()
NUMBER = "InvalidParameter"

NUMBERS = [
    *(distilling(f"temperature {t!r}", NUMBER, "'temperature'", "above 0", repr(t), temperature=t)
      for t in (0, -1.0, NAN, INF, "2", None, True)),
    *(distilling(f"alpha {a!r}", NUMBER, "'alpha' must be in [0, 1]", repr(a), alpha=a)
      for a in (-0.1, 1.5, NAN, "x", None)),
    distilling("label smoothing", NUMBER, "'label_smoothing'", "[0, 1)", label_smoothing=1.0),
    distilling("a loss's parameter as text", NUMBER, "'true_class' is 'a'", loss="decoupled",
               true_class="a"),
    *(distilling(f"training {key} {value!r}", NUMBER, repr(key), repr(value),
                 training={key: value})
      for key, value in (("epochs", 0), ("epochs", -1), ("epochs", 1.5), ("epochs", True),
                         ("batch_size", 0), ("learning_rate", NAN), ("learning_rate", INF),
                         ("learning_rate", "a"), ("clip_norm", 0), ("warmup", 1),
                         ("precision", "float8"), ("seed", -1), ("schedule", "cosin"))),
    distilling("unknown settings", NUMBER, "'epoch'", "Did you mean 'epochs'", "'lr'",
               training={"epoch": 3, "lr": 1}),
    distilling("a number as settings", NUMBER, "mapping of its settings", "Got 3", training=3),
    distilling("patience without validation", "MissingInput", "patience=2", training={"patience": 2}),
    distilling("a negative interval", NUMBER, "'every'", "-1", every=-1),
    distilling("a folder that is a number", NUMBER, "'stored'", "Got 5", stored=5),
    distilling("no classes kept", NUMBER, "'keep'", "Got 0", keep=0),
    distilling("all classes kept", NUMBER, "keep=3 of 3 classes", keep=3),
    fusing("several numbers at once", NUMBER, "'classes'", "'batch_size'", "'seed'", "'folds'",
           classes=0, batch_size=0, seed=-1, folds=1.5),
    fusing("hidden that is a number", NUMBER, "'hidden'", "Got 5", hidden=5),
    fusing("hidden and dropout", NUMBER, "'hidden'", "'dropout'", hidden=[0], dropout="a"),
    fusing("pull as text", NUMBER, "'pull' of concat", "'a'", pull="a"),
    fusing("a pull of NaN", NUMBER, "'pull' of log_pool", "nan", head="log_pool", pull=NAN),
    fusing("no attention heads", NUMBER, "'heads'", "'width'", head="attention", heads=0, width=0),
    fusing("no epochs of a head", NUMBER, "'epochs'", head="gated", epochs=0),
    fusing("an unknown parameter", NUMBER, "'hiden'", "Did you mean 'hidden'", hiden=[3]),
    fusing("an unknown setting of fine-tuning", NUMBER, "'epochs'", finetune={"epoch": 3}),
    retraining("a batch size as text", NUMBER, "'batch_size'", "'a'", batch_size="a"),
    retraining("an unknown task", NUMBER, "'task'", "'clas'", task="clas"),
]  # fmt: skip

DATA = [
    distilling("no labels", "MissingInput", "alpha", train=X),
    distilling("one example", "DataError", "1 examples", "at least 2", train=(X[:1], Y[:1])),
    distilling("no examples", "DataError", "no examples", train=(X[:0], Y[:0])),
    distilling("labels out of range", "DataError", "outside 0 to 2", "largest 3", train=(X, Y + 1)),
    distilling("labels as floats", "DataError", "torch.float32", train=(X, Y.float())),
    distilling("one-hot labels", "DataError", "one-hot", "argmax(1)", train=(X, HOT)),
    distilling("NaN inputs", "DataError", "teacher", "NaN", train=(ONE_NAN, Y)),
    distilling("unequal lengths", "DataError", "60 inputs but 50 targets", train=(X, Y[:50])),
    distilling("wider inputs", "DataError", "The student", "[60, 7]",
               train=(torch.zeros(60, 7), Y)),
    distilling("wider validation inputs", "DataError", "[40, 7]",
               validation=(torch.zeros(40, 7), Y2)),
    distilling("a leak", "DataLeak", "share 20 of 20", validation=(X[:20], Y[:20])),
    fusing("a split too small", "DataError", "10 examples, and 20", validation=(X[:10], Y[:10])),
    fusing("an empty split", "DataError", "validation: it has no examples",
           validation=(X[:0], Y[:0])),
    fusing("one class only", "DataError", "class 0", validation=(X, Y * 0)),
    fusing("labels out of range", "DataError", "3", validation=(X, Y + 1)),
    fusing("one-hot labels", "DataError", "one-hot", validation=(X, HOT)),
    fusing("NaN inputs", "DataError", "Member a", "1 of 60", validation=(ONE_NAN, Y)),
    fusing("wider inputs", "DataError", "Member a", "[60, 7]", validation=(torch.zeros(60, 7), Y)),
    fusing("no data", "MissingInput", "validation=", validation=None),
    retraining("labels out of range", "DataError", "outside 0 to 2", train=(X, Y + 1)),
    retraining("labels below zero", "DataError", "-1", train=(X, Y - 1)),
    retraining("labels as floats", "DataError", "torch.float32", train=(X, Y.float())),
    retraining("one-hot validation", "DataError", "validation", "one-hot", validation=(X2, HOT[:40])),
    retraining("NaN validation inputs", "DataError", "validation", validation=(X2 * NAN, Y2)),
    retraining("empty validation", "DataError", "no examples", validation=(X2[:0], Y2[:0])),
    retraining("a leak", "DataLeak", "share 20 of 20", validation=(X[:20], Y[:20])),
    retraining("other targets for regression", "DataError", "[60, 3]", "[60, 1]",
               train=(X, X[:, :1]), task="regression", training={"epochs": 1, "batch_size": 60}),
    retraining("no partitions", "MissingInput", "'train'", train={}),
    retraining("partitions that differ", "DataError", "[4]", "[3]", train={"a": (X, Y), "b": (X[:, :3], Y)}),
]  # fmt: skip


def comparing(name: str, error: str, *words: str, **changes: Any) -> Case:
    options = {"validation": (X2, Y2), "test": _data(30, 2), "train": (X, Y), "training": ONCE}
    options |= {"candidates": ["average"], "resamples": 50, **changes}
    return Case(f"compare: {name}", lambda g: alloykit.compare(g.members, **options), error, words)


COMPARED = [
    comparing("no epochs", NUMBER, "'epochs'", training={"epochs": 0}),
    comparing("settings as text", NUMBER, "'fast'", training="fast"),
    comparing("unknown settings", NUMBER, "Did you mean 'epochs'", training={"epoch": 1}),
    comparing("a number as student", NUMBER, "Got 5", student=5),
    comparing("a student of nothing", NUMBER, "returned None", student=lambda: None),
    comparing("train that is empty", "DataError", "train", train=(X[:0], Y[:0])),
    comparing("train that overlaps", "DataLeak", "train", "share 40", train=(X2, Y2)),
    comparing("labels as floats", "DataError", "train", "float32", train=(X, Y.float())),
]
