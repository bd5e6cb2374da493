"""What careless and malicious callers hand to fuse, distill, retrain and adapted: one clear error.

Nothing is written, members and student keep their bytes, and random numbers go on as they would.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import alloykit
from alloykit.ensembling.adapting import adapted
from alloykit.errors import AlloyError
from command_line import run
from study_files import blobs, write_study

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

MODELS = [
    distilling("teachers with other classes", "DataError", "big: 4 classes", "mapping=",
               teachers={"big": net(4), "b": net()}),
    *(distilling(f"mapping {m!r}", error, word, teachers=net(4), mapping=m)
      for m, error, word in (([0, 1, 2], "DataError", "4"), ([0, 1, 7, None], NUMBER, "7"),
                             ([0, 0, 1, 2], NUMBER, "repeated"), ("abc", NUMBER, "'mapping'"),
                             (5, NUMBER, "Got 5"), ({"zz": [0]}, NUMBER, "zz"))),
    distilling("no teachers", "MissingInput", "no teacher", teachers=[]),
    distilling("files as teachers", NUMBER, "teacher 1", "teacher 2", "load the file",
               teachers=["a.pt", "b.pt"]),
    distilling("a function as a teacher", NUMBER, "function", teachers=len),
    distilling("an array as a teacher", NUMBER, "ndarray", teachers=np.zeros((60, 3))),
    distilling("a teacher on meta", NUMBER, "meta device", teachers=net().to("meta")),
    distilling("a student on meta", NUMBER, "student", "meta", student=net().to("meta")),
    distilling("a class as a student", NUMBER, "the class Linear", student=nn.Linear),
    distilling("a frozen student", NUMBER, "nothing to train",
               student=net().requires_grad_(False)),
    distilling("a student that detaches", NUMBER, "does not depend", student=Odd(torch.detach)),
    distilling("a student of NaN", "DataError", "nan", "epoch 1 of 1, step 1",
               student=Odd(lambda o: o * NAN)),
    distilling("a student that drops a row", "DataError", "[59, 3]", "60 examples",
               student=Odd(lambda o: o[1:])),
    distilling("a teacher that drops a row", "DataError", "[59, 3]", "60 examples",
               teachers=Odd(lambda o: o[1:])),
    distilling("a teacher of NaN", "DataError", "NaN", "b", teachers={"b": Odd(lambda o: o * NAN)}),
    distilling("a teacher of Inf", "DataError", "teacher", teachers=Odd(lambda o: o * INF)),
    distilling("a teacher of tuples", "DataError", "tuple", teachers=Odd(lambda o: (o, o))),
    distilling("a teacher of dicts", "DataError", "dict", teachers=Odd(lambda o: {"x": o})),
    distilling("outputs of other rows", "DataError", "50 examples", teachers=torch.zeros(50, 3)),
    distilling("outputs of other classes", "DataError", "have 4", teachers=torch.zeros(60, 4)),
    distilling("outputs of NaN", "DataError", "NaN", teachers=torch.full((60, 3), NAN)),
    *(distilling(f"weights {w!r}", error, word, weights=w)
      for w, error, word in (([1], "InvalidWeights", "1 weights for 2"),
                             ([NAN, 1], "InvalidWeights", "nan"), (5, "InvalidWeights", "Got 5"),
                             (["a", "b"], "InvalidWeights", "'a'"), ({"a": 1}, NUMBER, "b"),
                             ("acuracy", "UnknownName", "accuracy"),
                             ("accuracy", "MissingInput", "validation="))),
    distilling("an unknown loss", "UnknownName", "Did you mean 'kl'", loss="kll"),
    distilling("a list of losses", NUMBER, "'loss'", loss=["kl"]),
    distilling("a loss weight as text", NUMBER, "above 0", loss={"kl": "a"}),
    distilling("features without layers", "MissingInput", "layers=", loss="hint"),
    *(distilling(f"layers {which!r}", NUMBER, word, teachers=net(), loss={"kl": 1, "hint": 1},
                 layers=which)
      for which, word in ((("zz", "1"), "1: ReLU"), (("1", "zz"), "1: ReLU"),
                          (("1",), "two names"), ("1", "two names"), ((1, 1), "two names"))),
    distilling("augmentation that drops a row", "DataError", "'augment'", "[59, 4]",
               augment=lambda x: x[1:], training={"epochs": 1, "batch_size": 60}),
    distilling("augmentation that returns nothing", "DataError", "'augment'", "NoneType",
               augment=lambda x: None),
    distilling("augmentation by name", NUMBER, "'augment'", "callable", augment="flip"),
    distilling("a progress bar by name", NUMBER, "'progress'", progress="bar"),
    fusing("no members", "MissingInput", "at least two", "none were", members=[]),
    fusing("one member", "MissingInput", "at least two", "one was", members=[net()]),
    fusing("a module as members", NUMBER, "several modules", members=net()),
    fusing("text as members", NUMBER, "several modules", members="ab"),
    fusing("files as members", NUMBER, "member 1", "member 2", members=["a.pt", "b.pt"]),
    fusing("a member on meta", NUMBER, "b: 4 tensors", "meta",
           members={"a": net(), "b": net().to("meta")}),
    fusing("a member with other rows", "DataError", "Member b", "[59, 3]",
           members={"a": net(), "b": Odd(lambda o: o[1:])}),
    fusing("a member of tuples", "DataError", "Member b", "tuple",
           members={"a": net(), "b": Odd(lambda o: (o, o))}),
    fusing("a member of dicts", "DataError", "Member b", "dict",
           members={"a": net(), "b": Odd(lambda o: {"x": o})}),
    fusing("a member of NaN", "DataError", "Member b", "60 of 60",
           members={"a": net(), "b": Odd(lambda o: o * NAN)}),
    fusing("an unknown head", "UnknownName", "Did you mean 'attention'", head="atention"),
    fusing("a head that is none", NUMBER, "'head'", "Got 5", head=5),
    fusing("a context for nothing", NUMBER, "does not look at a context", context="inputs"),
    fusing("a misspelt context", NUMBER, "'context'", "'input'", head="gated", context="input"),
    fusing("a misspelt source", NUMBER, "'source'", "'output'", source="output"),
    fusing("unknown layers", "UnknownName", "'b'", "All 3", source={"a": "1", "b": "zz"}),
    fusing("layers of strangers", NUMBER, "no layer for b", "'c'", source={"a": "1", "c": "1"}),
    fusing("layers as numbers", NUMBER, "by text", "Got 1", source={"a": 1, "b": 1}),
    fusing("features of a head of outputs", NUMBER, "log_pool", head="log_pool", source="features"),
    fusing("augmentation that drops a row", "DataError", "'augment'", augment=lambda x: x[1:]),
    fusing("other classes for log_pool", NUMBER, "[3, 4]", head="log_pool",
           members={"a": net(), "b": net(4)}),
    folding("no partitions", NUMBER, "member -> partition", train=None),
    folding("one split", NUMBER, "member -> partition", train=(X, Y)),
    folding("other names", NUMBER, "'b'", "'c'", train={"a": PARTS["a"], "c": PARTS["b"]}),
    folding("the same partition twice", "DataLeak", "a: 0 of 60", train={"a": (X, Y), "b": (X, Y)}),
    folding("no callable", NUMBER, "'out_of_fold'", out_of_fold="retrain"),
    folding("nothing returned", "DataError", "NoneType", "for a", out_of_fold=lambda *_: None),
    folding("other outputs", "DataError", "5 outputs", out_of_fold=lambda *_: net(5)),
    folding("more folds than examples", "DataError", "a: 30", folds=1000),
    folding("fine-tuning too", NUMBER, "finetune", finetune=True),
    retraining("an unknown start", NUMBER, "'start'", "'blanc'", start="blanc"),
    retraining("an average of one", "MissingInput", "at least two", model=[net()]),
    retraining("an average of files", NUMBER, "member 1", model=["a", "b"]),
    retraining("a callable of nothing", NUMBER, "returned None", model=lambda: None),
    retraining("a model on meta", NUMBER, "meta", model=net().to("meta")),
    retraining("too few classes", "DataError", "outside 0 to 1", model=net(2)),
    retraining("nothing to train", NUMBER, "nothing to train", model=nn.Identity(),
               train=(X[:, :3], Y)),
]  # fmt: skip

ADAPTED = [
    adapting("std of zero", NUMBER, "std[1] is 0", std=[1.0, 0.0, 2.0]),
    adapting("std of NaN and mean of Inf", NUMBER, "mean: 1", "std: 1", mean=INF, std=NAN),
    adapting("other shapes", NUMBER, "[3]", "[2]", mean=[1.0, 2.0, 3.0], std=[1.0, 2.0]),
    adapting("a mean as text", NUMBER, "'mean'", "'a'", mean="a"),
    *(adapting(f"size {size!r}", NUMBER, "'size'", size=size)
      for size in (0, -3, 2.5, "8", [], [8.0, 8.0], [1, 1, 1, 1], True)),
    adapting("a transform by name", NUMBER, "'transform'", transform="flip"),
    adapting("everything at once", NUMBER, "'size'", "'transform'", "'kind'", "'absent_mass'",
             size=0, transform=5, kind="logit", absent_mass=1.0),
    adapting("an unknown class", NUMBER, "'dgo'", "Did you mean 'dog'", classes=["dgo", "ant"],
             common=["ant", "cat", "dog"]),
    adapting("a class twice", NUMBER, "'cat' is repeated", classes=["cat", "cat"], common=["cat"]),
    adapting("a class number too high", NUMBER, "5", classes=[0, 5], common=3),
    adapting("classes as text", NUMBER, "'classes'", classes="cat", common=["c", "a", "t"]),
    adapting("classes as a number", NUMBER, "'classes'", classes=3, common=4),
    adapting("more classes than fit", NUMBER, "'common'", classes=[0], common=10**12),
    adapting("classes without all of them", NUMBER, "'common'", classes=["cat"]),
    Case("adapted: text", lambda g: adapted("x", mean=1.0), NUMBER, ("a str",)),
    Case("adapted: called with other shapes", lambda g: adapted(g.student, mean=[1.0, 2.0])(X),
         "DataError", ("[2]", "[4]")),
    Case("adapted: a transform of nothing",
         lambda g: adapted(g.student, transform=lambda x: None, mean=1.0)(X), "DataError",
         ("'transform'", "NoneType")),
    Case("adapted: other classes than named",
         lambda g: adapted(g.student, classes=[0, 1], common=3)(X), "DataError", ("3 outputs",)),
]  # fmt: skip

META, BIN, RUN = "teacher.json", "teacher_outputs.bin", "training.safetensors"


def _edited(**changes: Any) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        meta = json.loads((folder / META).read_text())
        (folder / META).write_text(json.dumps(meta | changes))

    return damage


def _content(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def storing(name: str, damage: Any, error: str, *words: str, **changes: Any) -> Case:
    return Case(f"stored: {name}", lambda g: g.stored(damage, **changes), error, words)


def resuming(name: str, damage: Any, error: str, *words: str, **changes: Any) -> Case:
    return Case(f"snapshot: {name}", lambda g: g.snapshot(damage, **changes), error, words)


def _nothing(folder: Path) -> None:
    """Leave it as it is."""


def _pipe(folder: Path) -> None:
    (folder / META).unlink()
    os.mkfifo(folder / META)


SHAPE = {"outputs": [[-60, -3], "float32"]}
STORES = [
    storing("other data", _nothing, "OutputExists", "data:", train=(X + 1, Y)),
    storing("fewer examples", _nothing, "OutputExists", "60 there, 40 now", train=(X2, Y2)),
    storing("another teacher", _nothing, "OutputExists", "teacher members", teachers=net(seed=5)),
    storing("another form", _nothing, "OutputExists", "keep: full there, half now", keep="half"),
    storing("other weights", _nothing, "OutputExists", "[0.25, 0.75] now", weights=[1, 3]),
    storing("truncated", _content(BIN, lambda b: b[:-4]), "CheckpointError", "720 bytes"),
    storing("one bit flipped", _content(BIN, lambda b: bytes([b[0] ^ 1]) + b[1:]),
            "CheckpointError", "damaged"),
    storing("no outputs", lambda f: (f / BIN).unlink(), "CheckpointError", BIN),
    storing("a later version", _edited(format=2), "CheckpointError", "format 1"),
    storing("a list", _content(META, lambda b: b"[]"), "CheckpointError", META),
    storing("no text", _content(META, lambda b: b"\xff{"), "CheckpointError", "UTF-8"),
    storing("nested without end", _content(META, lambda b: b"[" * 10**5), "CheckpointError", "deep"),
    storing("half a row", _edited(rows=5.5), "CheckpointError", "make no sense"),
    storing("a negative shape", _edited(tensors=SHAPE), "CheckpointError", "-60"),
    storing("a path outside", _edited(tensors={"../x": [[60], "int32"]}), "CheckpointError", "../x"),
    storing("an identity that is none", _edited(identity=[1]), "CheckpointError", META),
    storing("a pipe", _pipe, "CheckpointError", META),
    resuming("other settings", _nothing, "OutputExists", "training.epochs", "training.seed",
             training={"epochs": 2, "seed": 1}),
    resuming("another temperature", _nothing, "OutputExists", "kl(T=3)", temperature=3.0),
    resuming("another student", _nothing, "OutputExists", "student", student=net(seed=4)),
    resuming("another validation", _nothing, "OutputExists", "validation", validation=(X2, Y2)),
    resuming("truncated", _content(RUN, lambda b: b[:-10]), "CheckpointError", "truncated"),
    resuming("garbage", _content(RUN, lambda b: b"hello"), "CheckpointError", RUN),
    resuming("one bit flipped", _content(RUN, lambda b: b[:-1] + bytes([b[-1] ^ 1])),
             "CheckpointError", "damaged"),
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

CASES = [*COMPARED, *NUMBERS, *DATA, *MODELS, *ADAPTED, *STORES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gets_one_clear_error(case: Case, tmp_path: Path) -> None:
    given = Given(tmp_path)
    own = (given.student, *given.members.values())
    weights = bytes_of(*own)
    given.before = contents(tmp_path)
    state = torch.get_rng_state()
    with pytest.raises(AlloyError) as caught:
        case.call(given)
    error = caught.value
    assert type(error).__name__ == case.error, error
    assert error.exit_code in (2, 3, 4)
    for word in case.words:
        assert word in str(error)
    assert len(str(error)) < 1500
    assert contents(tmp_path) == given.before, "something was written"
    assert bytes_of(*own) == weights
    assert torch.equal(torch.get_rng_state(), state)


def test_names_are_told_apart() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 60


def test_a_link_in_the_place_of_outputs_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / BIN).symlink_to(tmp_path / "precious")
    with pytest.raises(alloykit.errors.OutputExists, match="is a link"):
        Given(tmp_path).distill(stored=tmp_path / "store")
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("option", ["stored", "snapshot"])
def test_a_file_where_a_folder_is_needed(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(AlloyError, match="file"):
        Given(tmp_path).distill(**{option: tmp_path / "file"})
    assert contents(tmp_path) == {"file": b"precious"}


def test_a_student_may_be_its_own_teacher() -> None:
    model = net()
    before = bytes_of(model)
    alloykit.distill(model, model, train=(X, Y), training=ONCE)
    assert bytes_of(model) == before


def test_the_same_member_twice_is_one_column_twice() -> None:
    member = net()
    assert alloykit.fuse([member, member], "log_pool", validation=(X, Y)).report.check.examples


def test_rows_known_to_be_the_members_own_are_marked() -> None:
    members = {"a": net(seed=1), "b": net(seed=2)}
    with pytest.warns(UserWarning, match="leak: 30 of 60 validation examples"):
        fused = alloykit.fuse(members, "log_pool", validation=(X, Y), train={"a": PARTS["a"]})
    assert any("leak" in note for note in fused.report.notes)


def test_a_loss_of_nan_says_where_and_keeps_the_best_weights(tmp_path: Path) -> None:
    with pytest.raises(alloykit.errors.DataError, match=r"epoch \d of 9, step \d") as caught:
        Given(tmp_path).distill(training={"epochs": 9, "learning_rate": 1e30})
    state = caught.value.student.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


class Stop(Exception):
    """Raised by a callback of the user."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize(
    "call",
    [
        lambda g, stop: g.distill(
            progress=stop, training={"epochs": 10**9}, snapshot=g.folder / "s"
        ),
        lambda g, stop: g.distill(augment=stop, training={"epochs": 10**9}),
        lambda g, stop: g.fuse(progress=stop, finetune={"epochs": 10**9}),
        lambda g, stop: g.fuse(validation=None, train=PARTS, out_of_fold=stop),
        lambda g, stop: g.retrain(progress=stop, training={"epochs": 10**9}),
    ],
    ids=["distill", "distill augmented", "fuse", "out of fold", "retrain"],
)
def test_an_interruption_leaves_everything_as_it_was(call, kind, tmp_path: Path) -> None:
    given, calls = Given(tmp_path), []
    own = (given.student, *given.members.values())
    weights, state = bytes_of(*own), torch.get_rng_state()

    def stop(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise kind
        return arguments[0] if len(arguments) == 1 else net()

    with pytest.raises(kind):
        call(given, stop)
    assert bytes_of(*own) == weights
    assert torch.equal(torch.get_rng_state(), state)
    assert not [name for name in contents(tmp_path) if name.endswith(".tmp")]


def test_what_an_interruption_left_is_gone_on_from(tmp_path: Path) -> None:
    given, calls = Given(tmp_path), []
    options: Mapping[str, Any] = {"training": {"epochs": 4, "batch_size": 20}, "every": 0}

    def stop(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        given.distill(snapshot=tmp_path / "run", progress=stop, **options)
    resumed = given.distill(snapshot=tmp_path / "run", **options).student
    assert bytes_of(resumed) == bytes_of(given.distill(**options).student)


STUDY = {"data": {"validation": {"npz": "validation.npz"}, "test": {"npz": "test.npz"},
                  "train": {"npz": "train.npz"}}, "training": {"epochs": 1}}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    inputs, labels = blobs(60, 20)
    np.savez(folder / "train.npz", x=inputs, y=labels)
    return write_study(folder, **STUDY)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["fuse", "--head", "atention"], 2, ["attention"]),
        (["fuse", "--source", "output"], 2, ["'source'"]),
        (["fuse", "--context", "inputs"], 2, ["concat", "context"]),
        (["fuse", "-p", "hiden=[3]"], 2, ["hiden", "hidden"]),
        (["fuse", "-p", "hidden=[3"], 2, ["cannot be read"]),
        (["fuse", "-p", "hidden=!!python/object:os.system x"], 2, ["cannot be"]),
        (["fuse", "-p", "seed=5"], 2, ["seed"]),
        (["fuse", "-p", "members=5"], 2, ["members"]),
        (["fuse", "--seed", "-1"], 2, ["seed"]),
        (["fuse", "-o", "out.safetensors"], 2, [".pt2"]),
        (["fuse", "-o", "nowhere/out.pt2"], 4, ["nowhere"]),
        (["fuse", "--picture", "out.xyz"], 2, [".png", ".svg"]),
        (["distill", "--teacher", "avrage"], 2, ["average"]),
        (["distill", "--start", "blnk"], 2, ["blank"]),
        (["distill", "--temperature", "0"], 2, ["temperature", "above 0"]),
        (["distill", "--alpha", "nan"], 2, ["alpha", "[0, 1]"]),
        (["distill", "--keep", "²"], 2, ["keep"]),
        (["distill", "--loss", "hint"], 2, ["layers"]),
        (["distill", "-p", "temperature=1"], 2, ["temperature"]),
        (["distill", "-p", "accelerator=3"], 2, ["accelerator"]),
        (["distill", "-o", "tune1.safetensors", "--overwrite"], 4, ["input"]),
        (["distill", "--stored", "train.npz"], 4, ["train.npz", "folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_commands_say_what_is_wrong(
    command: list[str],
    code: int,
    words: list[str],
    study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _refused(study, command, code, words, capsys, monkeypatch)


def _student(architecture: str) -> dict[str, Any]:
    return {"student": {"architecture": architecture}}


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"training": {"epoch": 3}}, 2, ["training.epoch", "epochs"]),
        (
            {"training": {"epochs": 0, "batch_size": 0}},
            2,
            ["training.epochs", "training.batch_size"],
        ),
        ({"training": {"learning_rate": INF}}, 2, ["learning_rate", "inf"]),
        ({"training": "fast"}, 2, ["training"]),
        ({"student": "nets:small"}, 2, ["student"]),
        (_student("nowhere:net"), 3, ["nowhere"]),
        ({"student": {"architecture": "nets:small", "arguments": {"widht": 4}}}, 2, ["widht"]),
        (_student("nets:smal"), 3, ["smal"]),
        (_student("nets:nn"), 2, ["nets:nn", "builds no model"]),
        (_student("nets:four_classes"), 3, ["3", "4"]),
        ({"members": {"mean": [1, 2, 3]}}, 3, ["tune1", "[3]", "[2]"]),
        ({"members": {"std": [1, 0]}}, 2, ["tune1", "std[1]"]),
        ({"members": {"mean": NAN}}, 2, ["tune1", "mean"]),
        ({"members": {"size": 0}}, 2, ["tune1", "'size'"]),
        ({"members": {"classes": [0, 1, 7]}, "classes": 3}, 2, ["tune1", "7"]),
        ({"members": {"classes": [0, 1]}, "classes": 3}, 3, ["tune1", "2 classes"]),
        ({"members": {"men": 1}}, 2, ["men", "mean"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_study_keys_say_what_is_wrong(
    changes: dict[str, Any],
    code: int,
    words: list[str],
    study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = copy.deepcopy(yaml.safe_load(study.read_text()))
    changes = dict(changes)
    changed["members"][0].update(changes.pop("members", {}))
    other = study.with_name("other.yaml")
    other.write_text(yaml.safe_dump(changed | changes))
    _refused(other, ["distill"], code, words, capsys, monkeypatch)


def _refused(
    study: Path,
    command: list[str],
    code: int,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(study.parent)
    before = {n: b for n, b in contents(study.parent).items() if "__pycache__" not in n}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ended = run(capsys, [command[0], study.name, *command[1:]])
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert "not foreseen" not in ended.err
    for word in words:
        assert word in ended.err
    after = {n: b for n, b in contents(study.parent).items() if "__pycache__" not in n}
    assert after == before, "something was written"
