"""Bad calls of fuse, distill, retrain and adapted: bad models, stores and snapshots."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bad_training import (
    INF,
    NAN,
    NUMBER,
    PARTS,
    X2,
    Y2,
    Case,
    Odd,
    X,
    Y,
    adapting,
    distilling,
    folding,
    fusing,
    net,
    retraining,
)
from torch import nn

from alloykit.ensembling.adapting import adapted

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
